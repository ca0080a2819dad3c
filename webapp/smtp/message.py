"""An email on its way: Flask-Mail's message, in lines that any relay passes unchanged."""

from __future__ import annotations

import binascii
import uuid
from collections.abc import Iterator
from email.charset import QP, Charset
from email.header import Header
from email.mime.text import MIMEText
from email.utils import formatdate
from functools import cached_property

import flask_mail

from webapp.smtp.addresses import mailbox

# Quoted-printable keeps lines short and 7-bit: relays that fold or strip leave them alone.
SEVEN_BIT = Charset("utf-8")
SEVEN_BIT.body_encoding = QP

LINE_MAX = 78


class Message(flask_mail.Message):
    """A mail with its alternatives on top: text first, then HTML."""

    @cached_property
    def content(self) -> bytes:
        """The mail as it is sent, made once. Raises BadHeaderError, ValueError."""
        if self.has_bad_headers():
            raise flask_mail.BadHeaderError
        # The email package takes longer than all the rest of a mail: it is left what is seldom.
        return self.as_bytes() if self.attachments else b"".join(self._written())

    def _written(self) -> Iterator[bytes]:
        for name, value in self._headers().items():
            yield header(name, value)
        parts = {"plain": self.body, **self.alts}
        if len(parts) == 1:
            yield part("plain", self.body)
            return
        # What is quoted-printable never holds "=_".
        boundary = f"=_{uuid.uuid5(uuid.NAMESPACE_URL, self.msgId).hex}"
        yield f'Content-Type: multipart/alternative;\r\n boundary="{boundary}"\r\n\r\n'.encode()
        for subtype, text in parts.items():
            yield f"--{boundary}\r\n".encode() + part(subtype, text) + b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    def _headers(self) -> dict[str, str]:
        headers = {
            "Subject": self.subject or "",
            "From": mailbox(self.sender),
            "To": ", ".join(map(mailbox, self.recipients)),
            "Date": formatdate(self.date, localtime=True),
            "Message-ID": self.msgId,
            "MIME-Version": "1.0",
        }
        if self.cc:
            headers["Cc"] = ", ".join(map(mailbox, self.cc))
        if self.reply_to:
            headers["Reply-To"] = mailbox(self.reply_to)
        return headers | (self.extra_headers or {})

    def _mimetext(self, text: str | None, subtype: str = "plain") -> MIMEText:
        return MIMEText(text or "", subtype, SEVEN_BIT)  # type: ignore[arg-type] # a Charset is taken too


def header(name: str, value: str) -> bytes:
    """Return a header line, encoded and folded where it must be. Raises BadHeaderError."""
    if "\r" in value or "\n" in value:
        raise flask_mail.BadHeaderError
    if not value.isascii() or len(name) + len(value) + 2 > LINE_MAX:
        value = Header(value, None if value.isascii() else "utf-8", LINE_MAX, name).encode(linesep="\r\n")
    return f"{name}: {value}\r\n".encode("ascii")


def part(subtype: str, text: str | None) -> bytes:
    """Return a text and its headers; its lines end as they do in mails."""
    lines = (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return (
        f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'.encode()
        + binascii.b2a_qp(lines.encode("utf-8", "replace"), istext=True)
    )
