"""The secret shared with an authenticator app, the recovery codes, and checking a code of either kind."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import uuid
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pyotp
import structlog
from sqlalchemy import ColumnElement, ForeignKey, Index, LargeBinary, String, delete, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp import audit
from webapp.accounts import notices, sessions, tokens, users
from webapp.accounts.users import User
from webapp.db.base import NUMBERED_ONCE, Model, db
from webapp.db.clock import db_now
from webapp.outbox import kinds

log = structlog.get_logger(__name__)

# The length of a SHA-1 hash, the only kind that common apps support.
SECRET_BYTES = 20
USE = "second factor"

# How many half minutes a phone's clock may be ahead or behind.
DRIFT = 1

# Wrong codes per day: for each session, each known browser, and all others together. Three in a million are right.
TRIES = 10
DAY = 86400.0

# Each has 79 bits, too many to guess even with a copy of the table. No two of the characters look alike.
RECOVERY_CODES = 10
RECOVERY_SIGNS = "abcdefghjkmnpqrstuvwxyz23456789"


class CodeWrong(Exception):
    """Not the current code, a code used before, or not one of the recovery codes that are left."""


class TooManyTries(Exception):
    """No code from the app is accepted for now; a recovery code still is."""


class SecondFactor(Model):
    """The secret from which an account's app makes codes. It is on once the user's `second_factor_at` is set.

    The secret is masked with a key that is not in the database. A new secret has a new id, and so another mask.
    """

    __tablename__ = "second_factors"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    masked: Mapped[bytes] = mapped_column(LargeBinary(SECRET_BYTES))
    key_id: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    # The time of the last code that was used: codes of this time or earlier no longer count.
    code_time: Mapped[datetime | None]


class RecoveryCode(Model):
    """A one-time code for an owner who lost the app, stored as a hash."""

    __tablename__ = "recovery_codes"
    __table_args__ = (Index("ix_recovery_codes_factor_id", "factor_id"),)

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    factor_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("second_factors.id", ondelete="CASCADE"))
    used_at: Mapped[datetime | None]


class SecondFactorTry(Model):
    """A wrong code, and the session or known browser in which it was typed, if it was one."""

    __tablename__ = "second_factor_tries"
    __table_args__ = (Index("ix_second_factor_tries_factor_id", "factor_id", "tried_at"), NUMBERED_ONCE)

    id: Mapped[int] = mapped_column(primary_key=True)
    factor_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("second_factors.id", ondelete="CASCADE"))
    known_by: Mapped[str | None] = mapped_column(String(100))
    tried_at: Mapped[datetime]


class AcceptedCode(NamedTuple):
    """A correct code; for a recovery code also the id of its notice, and how many are left."""

    notice: uuid.UUID | None = None
    left: int = 0


def check(user: User, typed: str, *, known_by: str | None) -> AcceptedCode:
    """Use up the current code, or a recovery code, which its owner is notified of. The caller commits.

    A wrong code is counted, and that is committed. `known_by`: as in SecondFactorTry. Raises CodeWrong, TooManyTries
    or PasswordChanged.
    """
    former = user.password_hash
    # One guess at a time: otherwise a hundred at once would each count as the first.
    users.lock_row(user)
    factor = of(user)
    if user.password_hash != former or user.second_factor_at is None or factor is None:
        db.session.rollback()
        raise sessions.PasswordChanged
    of_factor = SecondFactorTry.factor_id == factor.id
    tries = (of_factor, SecondFactorTry.known_by.is_not_distinct_from(known_by))
    digits = read_digits(typed)
    is_used_up = _count(*tries) >= TRIES
    if is_used_up and digits:
        db.session.rollback()
        raise TooManyTries
    if use_code(factor, digits) if digits else _use_recovery_code(factor, typed):
        # Only both factors together reset the count; the password alone does not.
        db.session.execute(delete(SecondFactorTry).where(*tries))
        return AcceptedCode() if digits else _notify(user, factor)
    # Nobody can guess a recovery code, so wrong ones need not be counted beyond the limit for codes of the app.
    if not is_used_up:
        db.session.add(SecondFactorTry(factor_id=factor.id, known_by=known_by, tried_at=db_now()))
        audit.record("second_factor_failed", user.id)
    db.session.commit()
    raise CodeWrong


def of(user: User, *, for_update: bool = False) -> SecondFactor | None:
    """Return the user's factor, even if it is not on yet; with `for_update`, keep others from changing it meanwhile."""
    # Read again: the last code used may have changed.
    query = select(SecondFactor).where(SecondFactor.user_id == user.id)
    if for_update:
        query = query.with_for_update()
    return db.session.scalar(query, execution_options={"populate_existing": True})


def recovery_codes_left(factor: SecondFactor) -> int:
    unused = select(func.count()).where(RecoveryCode.factor_id == factor.id, RecoveryCode.used_at.is_(None))
    return db.session.scalar(unused) or 0


def new(user: User) -> SecondFactor:
    """Return a factor with a new secret, not on yet. The caller adds it."""
    factor_id, key_id = uuid.uuid4(), tokens.newest_key()
    masked = tokens.mask(secrets.token_bytes(SECRET_BYTES), factor_id, USE, key_id)
    return SecondFactor(id=factor_id, user_id=user.id, masked=masked, key_id=key_id, created_at=db_now())


def totp(factor: SecondFactor) -> pyotp.TOTP | None:
    """Return the generator of the codes; None if the key that masks the secret is gone."""
    if not tokens.is_kept(factor.key_id):
        log.warning("second_factor_unreadable", user_id=factor.user_id)
        return None
    secret = tokens.mask(factor.masked, factor.id, USE, factor.key_id)
    return pyotp.TOTP(base64.b32encode(secret).decode())


def mask_anew() -> None:
    """Move secrets masked with an older key that is still kept to the newest key. The caller commits."""
    former = [key_id for key_id in tokens.kept_keys() if key_id != tokens.newest_key()]
    old = select(SecondFactor).where(SecondFactor.key_id.in_(former))
    for factor in db.session.scalars(old.with_for_update(skip_locked=True)) if former else ():
        secret = tokens.mask(factor.masked, factor.id, USE, factor.key_id)
        factor.key_id = tokens.newest_key()
        factor.masked = tokens.mask(secret, factor.id, USE, factor.key_id)


def read_digits(typed: str) -> str:
    """Return the six digits that an app shows, or "" if something else was typed."""
    digits = re.sub(r"[\s-]", "", typed)
    return digits if re.fullmatch(r"[0-9]{6}", digits) else ""


def use_code(factor: SecondFactor, digits: str) -> bool:
    """Use up the code; return whether it was the current one, and not used before. The caller commits."""
    codes, now = totp(factor), db.session.scalar(select(db_now()))
    time = _time_of(digits, codes, now) if codes and now else None
    if time is None or (factor.code_time and factor.code_time >= time):
        return False
    factor.code_time = time
    return True


def make_recovery_codes(factor: SecondFactor) -> list[str]:
    """Replace all recovery codes; return the new ones, stored only as hashes. The caller commits."""
    db.session.execute(delete(RecoveryCode).where(RecoveryCode.factor_id == factor.id))
    codes = [_recovery_code() for _ in range(RECOVERY_CODES)]
    db.session.add_all(RecoveryCode(code_hash=_hashed(factor, code), factor_id=factor.id) for code in codes)
    return codes


def forget(user: User) -> None:
    """Delete the user's factor, with its recovery codes and tries. The caller commits."""
    db.session.execute(delete(SecondFactor).where(SecondFactor.user_id == user.id))


def _count(*which: ColumnElement[bool]) -> int:
    return db.session.scalar(select(func.count()).where(*which, SecondFactorTry.tried_at > db_now(-DAY))) or 0


def _time_of(digits: str, codes: pyotp.TOTP, now: datetime) -> datetime | None:
    """Return the start of the half minute whose code this is, or None if it is not a recent one."""
    found = None
    for drift in range(-DRIFT, DRIFT + 1):
        at = now + timedelta(seconds=drift * codes.interval)
        if hmac.compare_digest(codes.at(at), digits):
            found = datetime.fromtimestamp(codes.timecode(at) * codes.interval, UTC)
    return found


def _recovery_code() -> str:
    return "-".join("".join(secrets.choice(RECOVERY_SIGNS) for _ in range(4)) for _ in range(4))


def _use_recovery_code(factor: SecondFactor, typed: str) -> bool:
    used = update(RecoveryCode).where(RecoveryCode.code_hash == _hashed(factor, typed), RecoveryCode.used_at.is_(None))
    return db.session.scalar(used.values(used_at=db_now()).returning(RecoveryCode.code_hash)) is not None


def _notify(user: User, factor: SecondFactor) -> AcceptedCode:
    """Record that a recovery code was used, and queue a notice to its owner."""
    left = recovery_codes_left(factor)
    audit.record("recovery_code_used", user.id, detail=f"{left} left")
    return AcceptedCode(notices.post(user, kinds.RECOVERY_CODE_USED, by_owner=True, left=str(left)), left)


def _hashed(factor: SecondFactor, code: str) -> str:
    signs = re.sub(r"[^a-z0-9]", "", code.lower())
    return hashlib.sha256(f"{factor.id}:{signs}".encode()).hexdigest()
