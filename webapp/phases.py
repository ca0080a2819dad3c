"""The steps of a conversation with a mail server: what is said at each, and what it is when one fails."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import flask_mail

from webapp.message import Message, bare

Phase = Literal["connect", "tls", "login", "sender", "recipient", "data", "dot"]


class Command(NamedTuple):
    """What is said before a mail, and the answer that lets it go on; a copy may be refused."""

    phase: Phase
    line: str
    expected: int = 250
    is_copy: bool = False


class SmtpError(Exception):
    """The conversation ended without a 250 for the message.

    `phase` is the step that failed; `code` and `reply` are the server's, or None and the network's
    error. Lost at "dot" without a code, the message may have been taken.
    """

    def __init__(self, phase: Phase, code: int | None, reply: str) -> None:
        self.phase: Phase = phase
        self.code = code
        self.reply = reply
        super().__init__(f"{phase}: {reply}" if code is None else f"{phase}: {code} {reply}")


class Aborted(SmtpError):
    """The conversation was ended by us, before the final dot: nothing was sent."""


@contextmanager
def step(phase: Phase) -> Iterator[None]:
    """Say in which phase an error of the server's or the network's happened."""
    try:
        yield
    except smtplib.SMTPResponseException as error:
        reply = error.smtp_error
        raise SmtpError(
            phase, error.smtp_code, reply.decode(errors="replace") if isinstance(reply, bytes) else reply
        ) from error
    except (OSError, smtplib.SMTPException) as error:
        raise SmtpError(phase, None, f"{type(error).__name__}: {error}") from error


def lines(commands: Sequence[Command]) -> bytes:
    return "".join(f"{command.line}\r\n" for command in commands).encode("ascii")


def accept(code: int, reply: bytes, expected: int = 250) -> None:
    # 220 greets, 251 forwards.
    if code != expected and not (expected == 250 and code in {220, 251}):
        raise smtplib.SMTPResponseException(code, reply)


def envelope(message: Message, sender: str | tuple[str, str]) -> list[Command]:
    """Return what is said before a mail. Raises UnicodeError, BadHeaderError."""
    commands = [
        Command("sender", f"mail FROM:<{bare(sender)}>"),
        *(Command("recipient", f"rcpt TO:<{bare(recipient)}>") for recipient in message.recipients),
        *(Command("recipient", f"rcpt TO:<{bare(copy)}>", is_copy=True) for copy in [*message.cc, *message.bcc]),
        Command("data", "data", expected=354),
    ]
    if any("\r" in command.line or "\n" in command.line for command in commands):
        raise flask_mail.BadHeaderError
    return commands
