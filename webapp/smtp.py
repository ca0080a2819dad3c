"""Flask-Mail's connection with what it lacks: timeouts, verified TLS, reuse, and which step failed."""

from __future__ import annotations

import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, cached_property
from types import TracebackType
from typing import Self

import flask_mail
import structlog
from flask import Flask

from webapp.message import Message
from webapp.phases import Aborted, Command, SmtpError, accept, envelope, lines, step
from webapp.wire import Encrypted, Plain, Watchdog

log = structlog.get_logger(__name__)

# A connection idle for longer is asked whether it still lives before a mail is trusted to it.
FRESH_SECONDS = 5

# A server that does not answer what was said behind a final dot in this part of a mail's time did not hear it.
PATIENCE = 1 / 4

# So much the system takes at once, whether or not the server reads. A longer mail takes its time, so it goes before we
# ask whether its dot may follow.
ONE_WRITE = 16384

# A worker that is told to stop waits this long for the answer to a mail that was handed over already.
ANSWER_SECONDS = 5


class Mail(flask_mail.Mail):
    """Flask-Mail, keeping one connection for each thread."""

    def init_app(self, app: Flask) -> flask_mail._Mail:
        self.kept = threading.local()
        self.busy: Watchdog[Connection] = Watchdog()
        self.stopping = False
        self.state = state = super().init_app(app)
        # Flask-Mail sends nothing while testing; our tests have a real server.
        state.suppress = False
        self.timeout: int = app.config["MAIL_TIMEOUT"]
        self.__dict__.pop("tls", None)
        return state

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """What TLS trusts. Shared, since making one costs 50 ms, and made when it is needed: the web needs none."""
        return ssl.create_default_context()

    def connect(self) -> Connection:
        """Return this thread's connection: `with` opens it, or finds it open."""
        connection: Connection | None = getattr(self.kept, "connection", None)
        if connection is None:
            connection = self.kept.connection = Connection(self)
        return connection

    def close(self) -> None:
        """Close this thread's connection."""
        if hasattr(self.kept, "connection"):
            self.kept.connection.close()

    def stop(self) -> None:
        """Let every conversation end soon: before its final dot at once, after it in ANSWER_SECONDS."""
        self.stopping = True
        for connection in list(self.busy.watched):
            connection.end_soon()


class Connection(flask_mail.Connection):
    """A connection that outlives a mail that went well, and none that did not.

    Each `with` is one mail, and has MAIL_TIMEOUT seconds in all. Raises SmtpError.
    """

    mail: Mail
    host: Plain | Encrypted | None
    last_used = 0.0
    # Whether the server hears what is said behind a final dot, as far as we know.
    hears_ahead = True

    def __init__(self, mail: Mail) -> None:
        super().__init__(mail)
        self.lock = threading.Lock()
        self.is_past_dot = False
        # How the next mail was begun, behind the last one's dot.
        self.said_ahead: list[Command] = []
        # Whether what we say is part of a mail.
        self.is_amid_mail = False

    def __enter__(self) -> Self:
        self.deadline = time.monotonic() + self.mail.timeout
        self.is_past_dot = False
        self.mail.busy.add(self)
        try:
            self._open()
        except BaseException:
            self._leave(ended_well=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(ended_well=error is None)

    def _open(self) -> None:
        # Asked once we are among those that stop() ends.
        if self.mail.stopping:
            raise Aborted("connect", None, "we are stopping")
        if self.host is not None and not self._is_alive():
            self.close()
        if self.host is None:
            self.configure_host()

    def configure_host(self) -> Plain | Encrypted:
        """Return a connection that is greeted, encrypted and signed in, as the settings say."""
        mail = self.mail
        self.num_emails = 0
        with step("connect"):
            host = (
                Encrypted(local_hostname=our_name(), timeout=mail.timeout, context=mail.tls)
                if mail.use_ssl
                else Plain(local_hostname=our_name(), timeout=mail.timeout)
            )
            # Within reach of the watchdog from its first byte on.
            self.host = host
            host.deadline = self.deadline
            # What smtplib's constructor does; starttls() and SMTP_SSL check the certificate against it.
            host._host = mail.server  # type: ignore[attr-defined]  # noqa: SLF001
            accept(*host.connect(mail.server, mail.port))
            host.ehlo_or_helo_if_needed()
        if mail.use_tls:
            with step("tls"):
                accept(*host.starttls(context=mail.tls))
                host.ehlo_or_helo_if_needed()
        if mail.username and mail.password:
            with step("login"):
                host.login(mail.username, mail.password)
        return host

    def send(  # type: ignore[override] # the server's reply is worth keeping
        self,
        message: Message,
        envelope_from: str | tuple[str, str] | None = None,
        may_finish: Callable[[], bool] = lambda: True,
        following: Message | None = None,
    ) -> str:
        """Hand the message over; return the server's final reply, "250 …".

        `may_finish` is asked when only the final dot is missing; without its leave nothing is sent
        (Aborted). Refused copies (cc, bcc) are logged; a refused recipient raises SmtpError.
        `following` is what the next call sends, or nothing does: it is begun behind the dot, to save a round trip.
        """
        content = message.content
        if b"\n." in content:
            content = smtplib._quote_periods(content)  # type: ignore[attr-defined]  # noqa: SLF001
        commands = envelope(message, envelope_from or message.sender)
        try:
            self._begin(commands)
        except SmtpError as error:
            # A server may close what was idle: the mail has not begun, so a new connection costs it nothing.
            if not self.num_emails or error.phase != "sender" or error.code not in {None, 421}:
                raise
            self.close()
            self.configure_host()
            self._begin(commands)
        self.is_amid_mail = True
        host = self.opened()
        rest = content if content.endswith(b"\r\n") else content + b"\r\n"
        if len(rest) > ONE_WRITE:
            with step("data"):
                host.send(rest)
            rest = b""
        with self.lock:
            if self.mail.stopping or not may_finish():
                raise Aborted("data", None, "we stopped before the final dot")
            self.is_past_dot = True
        if following and self.hears_ahead and host.has_extn("pipelining"):
            self.said_ahead = envelope(following, following.sender)
        with step("dot"):
            host.send(rest + b".\r\n" + lines(self.said_ahead))
            code, reply = host.getreply()
            self.is_amid_mail = bool(self.said_ahead)
            accept(code, reply)
        self.num_emails += 1
        return f"{code} {reply.decode(errors='replace')}"

    def opened(self) -> Plain | Encrypted:
        if self.host is None:
            raise SmtpError("connect", None, "the connection was closed")
        return self.host

    def _begin(self, commands: Sequence[Command]) -> None:
        """Say whom the mail is from and for: in one round trip, where the server lets us (RFC 2920)."""
        if self.said_ahead == commands:
            self._hear_ahead()
            return
        if self.said_ahead:
            # The server waits for another mail, and there is no taking that back.
            self.close()
            self.configure_host()
        host = self.opened()
        for group in [commands] if host.has_extn("pipelining") else [[command] for command in commands]:
            with step(group[0].phase):
                host.send(lines(group))
            self._hear(group)

    def _hear(self, commands: Sequence[Command]) -> None:
        host = self.opened()
        for command in commands:
            with step(command.phase):
                code, reply = host.getreply()
                if command.is_copy and code not in {250, 251}:
                    log.warning("copy_refused", smtp_code=code, reply=reply.decode(errors="replace"))
                else:
                    accept(code, reply, expected=command.expected)

    def _hear_ahead(self) -> None:
        """Hear the answers to what was said ahead. A server that did not hear it is told nothing ahead again."""
        said, self.said_ahead = self.said_ahead, []
        host = self.opened()
        begun, patience = time.monotonic(), self.mail.timeout * PATIENCE
        host.sock.settimeout(patience)
        try:
            self._hear(said[:1])
        except SmtpError as error:
            if error.code is None and time.monotonic() - begun >= patience:
                self.hears_ahead = False
                log.warning("pipelining_unheard", seconds=patience)
            raise
        host.sock.settimeout(self.mail.timeout)
        self._hear(said[1:])

    def end_soon(self) -> None:
        # The watchdog cuts it, again and again: there may be nothing to cut yet.
        with self.lock:
            seconds = ANSWER_SECONDS if self.is_past_dot else 0
            self.deadline = min(self.deadline, time.monotonic() + seconds)

    def close(self) -> None:
        """Forget the connection, politely where the server still listens."""
        host, self.host = self.host, None
        is_amid_mail, self.is_amid_mail, self.said_ahead = self.is_amid_mail, False, []
        if host is not None:
            # What QUIT answers changes nothing about a mail that was accepted.
            with suppress(OSError, smtplib.SMTPException):
                # Amid a mail it would be a line of the mail's.
                if host.sock is not None and not is_amid_mail:
                    host.sock.settimeout(1)
                    host.quit()
            host.close()

    def _leave(self, *, ended_well: bool) -> None:
        self.mail.busy.discard(self)
        self.last_used = time.monotonic()
        if not ended_well:
            self.close()

    def _is_alive(self) -> bool:
        if time.monotonic() - self.last_used < FRESH_SECONDS:
            return True
        if self.said_ahead:
            return False
        try:
            return bool(self.host and self.host.noop()[0] == 250)
        except (OSError, smtplib.SMTPException):
            return False

    def cut(self) -> None:
        """End the conversation, from any thread: whoever waits for the server gets an error at once."""
        if self.host is not None:
            self.host.cut()


@cache
def our_name() -> str:
    """Return what we call ourselves in EHLO; asking for it may cost a DNS query."""
    name = socket.getfqdn()
    return name if "." in name else "[127.0.0.1]"
