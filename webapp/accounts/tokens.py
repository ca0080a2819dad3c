"""Tokens of links, and codes: keyed hashes of a row's id, so that nothing secret is stored."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from functools import lru_cache

from flask import current_app

ID_BYTES = 16
TOKEN_BYTES = ID_BYTES + 16  # the row's id, then half a SHA-256
TOKEN_LONGEST = 2 * TOKEN_BYTES  # base64 takes four thirds


def token(row_id: uuid.UUID, purpose: str, key_id: str) -> str:
    """Return a link's secret part, the same every time."""
    mac = _mac("link", row_id, purpose, key_id)[: TOKEN_BYTES - ID_BYTES]
    return base64.urlsafe_b64encode(row_id.bytes + mac).rstrip(b"=").decode()


def code(row_id: uuid.UUID, purpose: str, key_id: str) -> str:
    """Return six digits, the same every time."""
    return f"{int.from_bytes(_mac('code', row_id, purpose, key_id)[:8], 'big') % 1_000_000:06}"


def seal(use: str, text: str) -> str:
    """Return a signature of the text for this use."""
    return _seal(_keys()[newest_key()], use, text)


def is_sealed(use: str, text: str, seal: str) -> bool:
    """Return whether we signed this text for this use, with a key that is still kept."""
    return any(hmac.compare_digest(_seal(key, use, text).encode(), seal.encode()) for key in _keys().values())


def mask(secret: bytes, row_id: uuid.UUID, purpose: str, key_id: str) -> bytes:
    """Return the secret, of up to 32 bytes, hidden by the key; masking the result again returns the secret.

    Use each id for one secret only: two under the same mask would reveal how they differ.
    """
    return bytes(one ^ other for one, other in zip(secret, _mac("mask", row_id, purpose, key_id), strict=False))


def read(token_text: str) -> uuid.UUID | None:
    """Return the id at the beginning of a token, whose signature is not checked; None if it is not a token."""
    if len(token_text) > TOKEN_LONGEST:
        return None
    try:
        raw = base64.urlsafe_b64decode(token_text.encode("ascii") + b"=")
    except (binascii.Error, UnicodeEncodeError):
        return None
    return uuid.UUID(bytes=raw[:ID_BYTES]) if len(raw) == TOKEN_BYTES else None


def newest_key() -> str:
    """Return the id of the key that signs everything new."""
    return next(iter(_keys()))


def kept_keys() -> list[str]:
    """Return the ids of all keys, newest first."""
    return list(_keys())


def is_kept(key_id: str) -> bool:
    return key_id in _keys()


def _mac(use: str, row_id: uuid.UUID, purpose: str, key_id: str) -> bytes:
    return hmac.digest(_keys()[key_id], f"{use}:{purpose}:".encode() + row_id.bytes, "sha256")


def _seal(key: bytes, use: str, text: str) -> str:
    return hmac.digest(key, f"{use}:{text}".encode(), "sha256").hex()


def _keys() -> dict[str, bytes]:
    """Return the signing keys by id, newest first; each is derived from one secret."""
    return _derived(current_app.config["SECRET_KEY"], *current_app.config["SECRET_KEY_FALLBACKS"])


@lru_cache
def _derived(*secrets: str) -> dict[str, bytes]:
    keys = [hmac.digest(secret.encode(), b"verification links", "sha256") for secret in secrets]
    return {hashlib.sha256(key).hexdigest()[:16]: key for key in keys}
