"""The development mailbox: emails that its server (tools/mailbox_server.py) received, to read in a browser."""

from __future__ import annotations

import email
import itertools
import re
import time
from base64 import b64encode
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
# Not part of a longer number or a link.
CODE = re.compile(r"(?<![\w/.=-])(\d{3}) ?(\d{3})(?![\w/=-])")
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
# An id comes from a URL and becomes a file name, so nothing else is allowed in it.
ID = re.compile(r"[0-9]{13}-[0-9]{5,10}")


@dataclass(frozen=True)
class ReceivedMail:
    id: str
    subject: str
    sender: str
    # The envelope's recipients, which include Bcc.
    recipients: tuple[str, ...]
    # When it arrived, in UTC.
    date: datetime
    text: str
    html: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes

    @property
    def snippet(self) -> str:
        """The beginning of its text."""
        return " ".join(self.text.split())[:SNIPPET]

    @property
    def code(self) -> str | None:
        """The six-digit code in its text, if there is one."""
        found = CODE.search(self.text)
        return "".join(found.groups()) if found else None

    @property
    def html_with_pictures(self) -> str:
        """The HTML with the attached pictures inlined: for display, not for search."""
        return _with_pictures(self.html, email.message_from_bytes(self.raw))

    def has(self, words: str) -> bool:
        """Return whether it contains every one of the words."""
        everything = " ".join([self.subject, self.sender, *self.recipients, self.text, self.html]).casefold()
        return all(word in everything for word in words.casefold().split())


class Mailbox:
    """Emails as files in a folder; each appears whole or not at all."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    def save(self, raw: bytes) -> str:
        """Store the email, delete the oldest ones, and return its id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The number keeps emails of the same millisecond apart and in order.
        mail_id = f"{time.time_ns() // 1_000_000:013}-{next(self._numbers):05}"
        unfinished = self.folder / f"{mail_id}.part"
        unfinished.write_bytes(raw)
        unfinished.rename(self.folder / f"{mail_id}.eml")
        for path in self._paths()[KEPT:]:
            path.unlink(missing_ok=True)
        return mail_id

    def list(self, words: str = "") -> Sequence[ReceivedMail]:
        """Return the emails that contain all these words, newest first."""
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
    # Cached: an email never changes, and the list reads all of them every time it is shown.
    return parse(path.stem, path.read_bytes())


def parse(mail_id: str, raw: bytes) -> ReceivedMail:
    """Return whatever can be read of an email, however broken it is."""
    # The parser's older policy: the newer one raises on some broken headers.
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


def _with_pictures(html: str, message: Message) -> str:
    for part in message.walk():
        name, content = str(part.get("Content-ID", "")).strip("<> "), part.get_payload(decode=True)
        if name and part.get_content_type() in PICTURES and isinstance(content, bytes):
            html = html.replace(f"cid:{name}", f"data:{part.get_content_type()};base64,{b64encode(content).decode()}")
    return html


def _text(content: bytes, charset: str) -> str:
    try:
        return _whole(content.decode(charset, "replace"))
    except (LookupError, ValueError):
        return content.decode("utf-8", "replace")


def _whole(text: str) -> str:
    # Lone surrogates would break the page that shows them.
    return text.encode("utf-8", "replace").decode("utf-8")
