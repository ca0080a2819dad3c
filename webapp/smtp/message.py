"""An email on the wire: Flask-Mail's message, in lines that any relay passes unchanged."""

from __future__ import annotations

import binascii
import uuid
from collections.abc import Iterable, Mapping
from email.encoders import encode_base64
from email.header import Header
from email.mime.base import MIMEBase
from email.policy import compat32
from email.utils import formatdate
from functools import cache, cached_property
from itertools import starmap
from types import MappingProxyType

import flask_mail

from webapp.smtp.addresses import mailbox

CRLF = compat32.clone(linesep="\r\n")

LINE_MAX = 78


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
        # Not by the email package: it takes longer than everything else about an email.
        texts = [self._part(subtype, text) for subtype, text in {"plain": self.body, **self.alts}.items()]
        body = self._multipart("alternative", texts) if len(texts) > 1 else texts[0]
        if self.attachments:
            body = self._multipart("mixed", [body, *map(attached, self.attachments)])
        return b"".join(header(name, value) for name, value in self._headers().items()) + body

    def _part(self, subtype: str, text: str | None) -> bytes:
        if subtype != "html" or not self.pictures:
            return part(subtype, text)
        return self._multipart("related", [part(subtype, text), *starmap(picture, self.pictures.items())])

    def _multipart(self, subtype: str, parts: Iterable[bytes]) -> bytes:
        # Neither quoted-printable nor base64 contains "=_", and a nested multipart has a different boundary.
        boundary = f"=_{uuid.uuid5(uuid.NAMESPACE_URL, subtype + self.msgId).hex}".encode()
        written = b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts)
        start = f'Content-Type: multipart/{subtype};\r\n boundary="'.encode()
        return b'%b%b"\r\n\r\n%b--%b--\r\n' % (start, boundary, written, boundary)

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
    return attached(flask_mail.Attachment(None, "image/png", content, "inline", {"Content-ID": f"<{name}>"}))


def attached(attachment: flask_mail.Attachment) -> bytes:
    """Return an attachment and its headers."""
    data = attachment.data
    entity = MIMEBase(*attachment.content_type.split("/"), policy=CRLF)
    if isinstance(data, str):
        entity.set_param("charset", "utf-8")
    entity.set_payload(data.encode() if isinstance(data, str) else data)
    encode_base64(entity)
    filename = {"filename": attachment.filename} if attachment.filename else {}
    entity.add_header("Content-Disposition", attachment.disposition, **filename)
    for name, value in attachment.headers.items():
        entity[name] = value
    return entity.as_bytes()


def part(subtype: str, text: str | None) -> bytes:
    """Return a text and its headers, with CRLF line endings."""
    lines = (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
    return (
        f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n'.encode()
        + binascii.b2a_qp(lines.encode("utf-8", "replace"), istext=True)
    )
