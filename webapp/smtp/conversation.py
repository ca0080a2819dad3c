"""A connection to the mail server, from its greeting to our good-bye: it serves mail after mail."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from webapp.smtp import sasl
from webapp.smtp.client import Line, Patience, Refused, Reply, connect
from webapp.smtp.protocol import RESET, Aborted, Command, SmtpError, accept, lines, step

log = structlog.get_logger(__name__)

# A server that does not answer what was said behind a final dot in this part of a mail's time did not hear it.
PATIENCE = 1 / 4

# So much the system takes at once, whether or not the server reads. A longer mail takes its time, so it goes before we
# ask whether its dot may follow.
ONE_WRITE = 16384

# A worker that is told to stop waits this long for the answer to a mail that was handed over already.
STOPPING_SECONDS = 5

# Whoever has heard no waits this long for the answers to the rest of what was said, and to QUIT.
MANNERS_SECONDS = 1


class Conversation:
    """One is open, or over. Whoever uses it ends it after any error but a refusal of the mail."""

    line: Line

    def __init__(self, account: Any) -> None:
        self.account = account
        self.is_open = False
        # Whether the server would take what we say next for a command.
        self.is_in_order = False
        # Whether a mail was begun on it: a server may end what it has had enough of.
        self.is_used = False
        self.needs_reset = False
        # How the next mail was begun, behind the last one's dot, and by which thread.
        self.said_ahead: list[Command] = []
        self.begun_by: int | None = None
        self.offers: dict[str, str] = {}
        self.last_used = 0.0

    def is_kept(self, patience: Patience) -> bool:
        """Return whether it is open, and the server still there."""
        if self.is_open:
            self.line.patience = patience
            if self.said_ahead or self.line.is_quiet():
                return True
            self.is_in_order = False
            self.close()
        return False

    def open(self, patience: Patience) -> None:
        """Be greeted, encrypted and signed in, as the settings say. Raises SmtpError."""
        account = self.account
        with step("connect"):
            self.line = Line(connect(account.server, account.port, patience), patience)
        self.is_open = True
        if account.use_ssl:
            with step("tls"):
                self.line.encrypt(account.tls, account.server)
        with step("greeting"):
            accept(self.line.read())
        self._say_hello()
        if account.use_tls:
            with step("tls"):
                if "STARTTLS" not in self.offers:
                    raise OSError("the server does not offer STARTTLS, which MAIL_USE_TLS asks for")
                self._ask("starttls")
                self.line.encrypt(account.tls, account.server)
            self._say_hello()
        self.is_in_order = True
        if account.username and account.password:
            with step("login"):
                is_encrypted = account.use_ssl or account.use_tls
                offered = self.offers.get("AUTH", "").upper().split()
                sasl.log_in(self.line, offered, account.username, account.password, is_encrypted=is_encrypted)

    def _say_hello(self) -> None:
        with step("ehlo"):
            try:
                reply = self._ask(f"ehlo {self.account.ehlo_name}")
            except Refused as refused:
                # One that does not know the word.
                if refused.reply.code // 10 != 50:
                    raise
                reply = self._ask(f"helo {self.account.ehlo_name}")
        self.offers = {}
        for offer in reply.text.split("\n")[1:]:
            name, _, rest = offer.replace("=", " ").partition(" ")
            self.offers[name.upper()] = f"{self.offers.get(name.upper(), '')} {rest}"

    def _ask(self, command: str) -> Reply:
        self.line.write(f"{command}\r\n".encode("ascii"))
        return accept(self.line.read())

    def begin(self, commands: list[Command]) -> bool:
        """Say whom a mail is from and for: in one round trip, where the server lets us (RFC 2920). Raises SmtpError.

        Return whether it did: not when the server is done with this connection.
        """
        was_used, self.is_used = self.is_used, True
        try:
            self._go_on(commands) if self.said_ahead else self._begin(commands)
        except SmtpError as error:
            # A server may end what it has had enough of, and the mail has not begun: a new one costs it nothing.
            is_connections = error.phase == "sender" or not error.is_refusal
            if was_used and is_connections and self.line.patience.share(of=1) > 0:
                self.close()
                return False
            raise
        return True

    def _begin(self, commands: list[Command]) -> None:
        if self.needs_reset:
            commands = [RESET, *commands]
        self.needs_reset = self.is_in_order = False
        for group in [commands] if "PIPELINING" in self.offers else [[command] for command in commands]:
            with step(group[0].phase):
                self.line.write(lines(group))
            self._hear(group)

    def _go_on(self, commands: Sequence[Command]) -> None:
        """Hear the answers to what was said ahead. A server that did not hear it is told nothing ahead again."""
        said, self.said_ahead, self.begun_by = self.said_ahead, [], None
        if said != commands:
            # The server waits for another mail, and there is no taking that back.
            raise SmtpError("sender", None, "another mail was begun")
        try:
            self._hear(said, first_within=self.account.timeout * PATIENCE)
        except SmtpError as error:
            if error.phase == "sender" and isinstance(error.__cause__, TimeoutError):
                self.account.hears_ahead = False
                log.warning("pipelining_unheard")
            raise

    def _hear(self, commands: Sequence[Command], first_within: float = math.inf) -> None:
        """Hear all the answers, and raise the first no."""
        no: SmtpError | None = None
        within, waits_for_mail = first_within, False
        for command in commands:
            try:
                with step(command.phase), self.line.patience.at_most(within):
                    accept(self.line.read(), command.expected)
                waits_for_mail = command.expected == 3
            except SmtpError as error:
                if command.is_copy and error.is_refusal:
                    log.warning("copy_refused", smtp_code=error.code, reply=error.reply)
                    continue
                no = no or error
                if error.code in {None, 421}:
                    break
            within = MANNERS_SECONDS if no else math.inf
        else:
            self.is_in_order = not waits_for_mail
        if no:
            self.needs_reset = True
            raise no

    def finish(self, content: bytes, may_finish: Callable[[], bool], ahead: list[Command]) -> Reply:
        """Hand over the mail that was begun, and begin on the next one. Raises SmtpError."""
        patience = self.line.patience
        if "PIPELINING" not in self.offers:
            ahead = []
        if len(content) > ONE_WRITE:
            with step("data"):
                self.line.write(content)
            content = b""
        if patience.is_stopping() or not may_finish():
            raise Aborted("data", None, "we stopped before the final dot")
        patience.restart(self.account.answer_timeout, when_stopping=STOPPING_SECONDS)
        with step("dot"):
            self.line.write(content + b".\r\n" + lines(ahead))
            while (reply := self.line.read()).code == 354:
                # Some say it twice: the answer is still to come.
                pass
            self.said_ahead, self.begun_by = ahead, threading.get_ident() if ahead else None
            self.is_in_order = not ahead
            return accept(reply)

    @property
    def goes_on(self) -> bool:
        """Whether the server would take another mail: it waits for a command, or for one that was begun."""
        return self.is_in_order or bool(self.said_ahead)

    def close(self) -> None:
        """End it, politely where the server listens."""
        if self.is_in_order:
            self.line.patience = Patience(MANNERS_SECONDS, is_stopping=lambda: False)
            # What it answers changes nothing about a mail that was accepted.
            with suppress(OSError, Refused):
                self._ask("quit")
        if self.is_open:
            self.line.close()
        self.is_open = self.is_in_order = False
