"""The development mailbox: an SMTP server on this machine that keeps what it is sent, for reading in a browser."""

from __future__ import annotations

import asyncio
import email
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from functools import lru_cache
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

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


class _Keep:
    """The server's handler: it keeps each email in the mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        try:
            self.mailbox.save(b"".join(_trace(envelope)) + content)
        except OSError as error:
            return f"451 4.3.0 The mailbox could not keep it: {error.strerror}"
        return "250 2.0.0 Kept"


def _trace(envelope: Envelope) -> Iterator[bytes]:
    """Yield the headers that the last server on a mail's way adds: whom it was really from and for."""
    yield f"Return-Path: <{envelope.mail_from or ''}>\r\n".encode("utf-8", "replace")
    for recipient in envelope.rcpt_tos:
        yield f"Delivered-To: {recipient}\r\n".encode("utf-8", "replace")


async def serve(port: int, folder: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, told.set)
    keep = _Keep(Mailbox(folder))
    await loop.create_server(lambda: SMTP(keep, enable_SMTPUTF8=True), "127.0.0.1", port)
    # Connections that are still open end with the loop: what was answered is kept, the rest is sent again.
    await told.wait()


def main(arguments: list[str]) -> None:
    """`arguments`: the port and, if it is not ours, the folder."""
    port, folder = int(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else FOLDER
    try:
        asyncio.run(serve(port, folder))
    except OSError as error:
        sys.exit(f"The mailbox cannot listen on port {port}: {os.strerror(error.errno or 0)}")
