"""An email on the wire: Flask-Mail's message, in lines that any relay passes unchanged."""

from __future__ import annotations

import binascii
import uuid
from collections.abc import Iterable, Iterator, Mapping
from email.charset import QP, Charset
from email.header import Header
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import formatdate
from functools import cache, cached_property
from types import MappingProxyType

import flask_mail

from webapp.smtp.addresses import mailbox

# Quoted-printable keeps lines short and 7-bit: relays that fold or strip leave them alone.
SEVEN_BIT = Charset("utf-8")
SEVEN_BIT.body_encoding = QP

LINE_MAX = 78
BASE64_LINE = 76


class Message(flask_mail.Message):
    """An email with its alternatives at the top level: text first, then HTML with its pictures.

    `pictures`: PNGs, by the names that the HTML uses after "cid:".
    """

    pictures: Mapping[str, bytes] = MappingProxyType({})

    @cached_property
    def content(self) -> bytes:
        """The email as it is sent, built once. Raises BadHeaderError, ValueError."""
        if self.has_bad_headers():
            raise flask_mail.BadHeaderError
        # The email package takes longer than everything else about an email, so it gets only the rare ones.
        return self.as_bytes() if self.attachments else b"".join(self._written())

    def _written(self) -> Iterator[bytes]:
        for name, value in self._headers().items():
            yield header(name, value)
        parts = {"plain": self.body, **self.alts}
        if len(parts) == 1:
            yield part("plain", self.body)
            return
        yield from self._multipart("alternative", (self._part(subtype, text) for subtype, text in parts.items()))

    def _part(self, subtype: str, text: str | None) -> bytes:
        if subtype != "html" or not self.pictures:
            return part(subtype, text)
        pictures = (picture(name, content) for name, content in self.pictures.items())
        return b"".join(self._multipart("related", (part(subtype, text), *pictures)))

    def _multipart(self, subtype: str, parts: Iterable[bytes]) -> Iterator[bytes]:
        # Neither quoted-printable nor base64 contains "=_", and a nested multipart has a different boundary.
        boundary = f"=_{uuid.uuid5(uuid.NAMESPACE_URL, subtype + self.msgId).hex}"
        yield f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"\r\n\r\n'.encode()
        for written in parts:
            yield f"--{boundary}\r\n".encode() + written + b"\r\n"
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
        written = MIMEText(text or "", subtype, SEVEN_BIT)  # type: ignore[arg-type] # a Charset works too
        if subtype != "html" or not self.pictures:
            return written
        related = MIMEMultipart("related")
        related.attach(written)
        for name, content in self.pictures.items():
            image = MIMEImage(content, "png")
            image.add_header("Content-ID", f"<{name}>")
            image.add_header("Content-Disposition", "inline")
            related.attach(image)
        return related  # type: ignore[return-value] # it is attached like the text


def header(name: str, value: str) -> bytes:
    """Return a header line, encoded and folded where it must be. Raises BadHeaderError."""
    if "\r" in value or "\n" in value:
        raise flask_mail.BadHeaderError
    if not value.isascii() or len(name) + len(value) + 2 > LINE_MAX:
        value = Header(value, None if value.isascii() else "utf-8", LINE_MAX, name).encode(linesep="\r\n")
    return f"{name}: {value}\r\n".encode("ascii")


@cache
def picture(name: str, content: bytes) -> bytes:
    """Return a picture and its headers: the same in every email."""
    lines = binascii.b2a_base64(content, newline=False)
    folded = b"\r\n".join(lines[n : n + BASE64_LINE] for n in range(0, len(lines), BASE64_LINE))
    headers = (
        "Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n"
        f"Content-ID: <{name}>\r\nContent-Disposition: inline\r\n\r\n"
    )
    return headers.encode() + folded


def part(subtype: str, text: str | None) -> bytes:
    """Return a text and its headers, with CRLF line endings."""
    lines = (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return (
        f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'.encode()
        + binascii.b2a_qp(lines.encode("utf-8", "replace"), istext=True)
    )
