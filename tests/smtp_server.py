"""A real SMTP server that answers as it is told and keeps what it accepted."""

from __future__ import annotations

import asyncio
import email
import re
import threading
import time
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from types import TracebackType
from typing import Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass
class Mail:
    sender: str
    recipients: list[str]
    content: bytes
    message: EmailMessage = field(init=False)

    def __post_init__(self) -> None:
        self.message = email.message_from_bytes(self.content, policy=default)

    @property
    def text(self) -> str:
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content())

    @property
    def html(self) -> str:
        part = self.message.get_body(("html",))
        assert part is not None
        return str(part.get_content())

    @property
    def link(self) -> str:
        """The only link in the text part."""
        (link,) = re.findall(r"https?://\S+", self.text)
        return str(link)


class Listener(Controller):
    """A controller on any free port."""

    def _trigger_server(self) -> None:
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call] # aiosmtpd's


class Server:
    """`answers` maps MAIL, RCPT or DATA to the reply to give instead of 250; delete the key to mend it."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.connections = 0
        self.answers: dict[str, str] = {}
        self.arrived = threading.Condition()

    def __enter__(self) -> Self:
        self.controller = Listener(self, hostname="127.0.0.1", port=0, server_hostname="mail.test")
        self.controller.start()
        return self

    @property
    def port(self) -> int:
        return self.controller.port

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.controller.stop()

    async def handle_EHLO(
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_MAIL(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if "MAIL" in self.answers:
            return self.answers["MAIL"]
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if "RCPT" in self.answers:
            return self.answers["RCPT"]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        if "DATA" in self.answers:
            return self.answers["DATA"]
        assert isinstance(envelope.content, bytes)
        with self.arrived:
            self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), envelope.content))
            self.arrived.notify_all()
        return "250 2.0.0 taken"

    def to(self, address: str) -> list[Mail]:
        return [mail for mail in self.mails if address in mail.recipients]

    def wait_for(self, address: str, *, seconds: float = 30, count: int = 1) -> Mail:
        """Return the newest mail to this address, once there are `count`."""
        deadline = time.monotonic() + seconds
        with self.arrived:
            while len(self.to(address)) < count:
                if not self.arrived.wait(deadline - time.monotonic()):
                    message = f"no mail to {address} within {seconds} s"
                    raise AssertionError(message)
        return self.to(address)[-1]
