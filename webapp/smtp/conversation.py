"""Email after email on one connection, in as few round trips as the server allows (PIPELINING, RFC 2920).

All commands before an email are sent at once, and the next email is begun behind the final dot of the one before, so
that each costs one round trip. An email that was begun but must not be sent ends with its connection, without a dot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from webapp.smtp import client, opening
from webapp.smtp.client import Deadline, Line, Refused, Reply
from webapp.smtp.protocol import RESET, Aborted, Command, SmtpError, Tell, accept, lines, nobody, step

log = structlog.get_logger(__name__)

# A server that does not answer what was sent behind a final dot within this share of MAIL_TIMEOUT did not read it.
UNHEARD = 1 / 4

# The system accepts this much at once, whether or not the server reads it. A longer email takes a while, so it is
# written before we ask whether its dot may follow.
ONE_WRITE = 16384

# A worker that is told to stop waits this long for the answer to an email that it has handed over.
STOPPING_SECONDS = 5

# How long to wait for the remaining answers after a refusal, and for the answer to QUIT.
MANNERS_SECONDS = 1


class Conversation:
    """A conversation on one connection. The caller closes it after any error except a refusal of the email."""

    line: Line

    def __init__(self, account: Any, tell: Tell = nobody) -> None:
        self.account = account
        self.tell = tell
        self.is_open = False
        # Whether the server would read what we send next as a command.
        self.is_in_order = False
        # Whether an email was begun on it: a server may end a connection that it has had enough of.
        self.is_used = False
        self.needs_reset = False
        self.is_pipelining = False
        # The commands that began the next email, behind the last one's dot.
        self.said_ahead: list[Command] = []
        self.last_used = 0.0

    def open(self, deadline: Deadline) -> None:
        """Connect, greet, encrypt and sign in, as the settings say. Raises SmtpError."""
        with step("connect"):
            self.line = Line(client.connect(self.account.server, self.account.port, deadline), deadline)
        self.is_open = True
        offers = opening.greet(self.line, self.account, self.tell)
        self.is_in_order = True
        opening.log_in(self.line, self.account, offers, self.tell)
        self.is_pipelining = "PIPELINING" in offers

    def is_kept(self) -> bool:
        """Return whether it is open and the server is still there; if the server is not, close it."""
        if self.is_open and not self.line.is_quiet():
            self.is_in_order = False
            self.close()
        return self.is_open

    def begin(self, commands: list[Command], deadline: Deadline) -> bool:
        """Send an email's sender and recipients, unless they were sent ahead. Raises SmtpError.

        Return whether the server accepted them; False if it is done with this connection.
        """
        self.line.deadline = deadline
        was_used, self.is_used = self.is_used, True
        said, self.said_ahead = self.said_ahead, []
        try:
            if said:
                self._hear_ahead(said)
            else:
                self._say(commands)
        except SmtpError as error:
            # A server may end a connection that it has had enough of; the email loses nothing by starting on a new one.
            is_connections = error.phase == "sender" or not error.is_refusal
            if was_used and is_connections and deadline.share(of=1) > 0:
                self.close()
                return False
            raise
        return True

    def finish(self, content: bytes, may_finish: Callable[[], bool], ahead: list[Command]) -> Reply:
        """Hand over the email that was begun, and begin the next one. Raises SmtpError."""
        deadline = self.line.deadline
        if not self.is_pipelining:
            ahead = []
        if len(content) > ONE_WRITE:
            with step("data"):
                self.line.write(content)
            content = b""
        if deadline.is_stopping() or not may_finish():
            raise Aborted("data", None, "we stopped before the final dot")
        deadline.restart(self.account.answer_timeout, when_stopping=STOPPING_SECONDS)
        with step("dot"):
            self.line.write(content + b".\r\n" + lines(ahead))
            while (reply := self.line.read()).code == 354:
                # Some servers send 354 twice: the answer is still to come.
                pass
            self.said_ahead, self.is_in_order = ahead, not ahead
            return accept(reply)

    def close(self) -> None:
        """Close the connection, with a QUIT if the server would read it."""
        if self.is_in_order:
            self.line.deadline = Deadline(MANNERS_SECONDS, is_stopping=lambda: False)
            # The answer changes nothing about an email that was accepted.
            with suppress(OSError, Refused):
                opening.ask(self.line, "quit")
        if self.is_open:
            self.line.close()
        self.is_open = self.is_in_order = False
        self.said_ahead = []

    def _say(self, commands: list[Command]) -> None:
        if self.needs_reset:
            commands = [RESET, *commands]
        self.needs_reset = self.is_in_order = False
        for group in [commands] if self.is_pipelining else [[command] for command in commands]:
            with step(group[0].phase):
                self.line.write(lines(group))
            self._hear(group)

    def _hear_ahead(self, said: list[Command]) -> None:
        """Read the answers to what was sent ahead. If the server did not read it, never send ahead again."""
        try:
            self._hear(said, first_within=self.account.timeout * UNHEARD)
        except SmtpError as error:
            if error.phase == "sender" and isinstance(error.__cause__, TimeoutError):
                self.account.hears_ahead = False
                log.warning("pipelining_unheard")
            raise

    def _hear(self, commands: list[Command], first_within: float = math.inf) -> None:
        """Read all the answers, then raise the first error."""
        no: SmtpError | None = None
        within, waits_for_mail = first_within, False
        for command in commands:
            try:
                with step(command.phase), self.line.deadline.at_most(within):
                    self.tell(command.phase, accept(self.line.read(), command.expected))
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
