"""The development mailbox: what its server (tools/mailbox_server.py) was sent, for reading in a browser."""

from __future__ import annotations

import email
import itertools
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from functools import lru_cache
from pathlib import Path

from webapp.paths import INSTANCE

FOLDER = INSTANCE / "mailbox"
KEPT = 500
SNIPPET = 160
# An id comes from a URL and becomes a file's name, so it is digits and nothing else.
ID = re.compile(r"[0-9]{13}-[0-9]{5,10}")


@dataclass(frozen=True)
class ReceivedMail:
    id: str
    subject: str
    sender: str
    # Whom the mail was delivered to, which includes those in Bcc.
    recipients: tuple[str, ...]
    # When it arrived, in UTC.
    date: datetime
    text: str
    html: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes

    @property
    def snippet(self) -> str:
        """How its text begins."""
        return " ".join(self.text.split())[:SNIPPET]

    def has(self, words: str) -> bool:
        """Return whether each of the words is somewhere in it."""
        everything = " ".join([self.subject, self.sender, *self.recipients, self.text, self.html]).casefold()
        return all(word in everything for word in words.casefold().split())


class Mailbox:
    """Mails as files of a folder, which appear whole or not at all."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    def save(self, raw: bytes) -> str:
        """Keep the mail, let go of the oldest ones, and return its id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The number keeps mails of one millisecond apart and in order.
        mail_id = f"{time.time_ns() // 1_000_000:013}-{next(self._numbers):05}"
        unfinished = self.folder / f"{mail_id}.part"
        unfinished.write_bytes(raw)
        unfinished.rename(self.folder / f"{mail_id}.eml")
        for path in self._paths()[KEPT:]:
            path.unlink(missing_ok=True)
        return mail_id

    def list(self, words: str = "") -> Sequence[ReceivedMail]:
        """Return the mails that have all these words, newest first."""
        mails = (self.get(path.stem) for path in self._paths())
        return [mail for mail in mails if mail and mail.has(words)]

    def get(self, mail_id: str) -> ReceivedMail | None:
        if not ID.fullmatch(mail_id):
            return None
        path = self.folder / f"{mail_id}.eml"
        try:
            return _read(path) if path.exists() else None
        except FileNotFoundError:
            return None

    def delete(self, mail_id: str) -> None:
        if ID.fullmatch(mail_id):
            (self.folder / f"{mail_id}.eml").unlink(missing_ok=True)

    def delete_all(self) -> None:
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> Sequence[Path]:
        return sorted((path for path in self.folder.glob("*.eml") if ID.fullmatch(path.stem)), reverse=True)


@lru_cache(maxsize=KEPT)
def _read(path: Path) -> ReceivedMail:
    # Once: a mail never changes, and the list reads them all whenever it is shown.
    return parse(path.stem, path.read_bytes())


def parse(mail_id: str, raw: bytes) -> ReceivedMail:
    """Return what can be read of a mail, however broken it is."""
    # The parser's older policy: its newer one raises on some broken headers.
    message = email.message_from_bytes(raw)
    headers = tuple((name, _decoded(value)) for name, value in message.items())
    delivered = tuple(value for name, value in headers if name.lower() == "delivered-to")
    return ReceivedMail(
        id=mail_id,
        subject=_decoded(message.get("Subject", "")),
        sender=_decoded(message.get("From", "")),
        recipients=delivered or tuple(_decoded(value) for value in message.get_all("To", [])),
        date=datetime.fromtimestamp(int(mail_id.partition("-")[0]) / 1000, UTC),
        text=_body(message, "text/plain"),
        html=_body(message, "text/html"),
        headers=headers,
        raw=raw,
    )


def _decoded(value: object) -> str:
    line = re.sub(r"[\r\n]+[ \t]*", " ", str(value))
    with suppress(HeaderParseError, LookupError, ValueError):
        line = str(make_header(decode_header(line)))
    return _whole(line)


def _body(message: Message, content_type: str) -> str:
    for part in message.walk():
        if part.get_content_type() == content_type and part.get_content_disposition() != "attachment":
            content = part.get_payload(decode=True)
            if isinstance(content, bytes):
                return _text(content, part.get_content_charset("utf-8"))
    return ""


def _text(content: bytes, charset: str) -> str:
    try:
        return _whole(content.decode(charset, "replace"))
    except (LookupError, ValueError):
        return content.decode("utf-8", "replace")


def _whole(text: str) -> str:
    # Half characters (lone surrogates) would break the page that shows them.
    return text.encode("utf-8", "replace").decode("utf-8")
