"""The steps of a conversation with a mail server: the commands of each, and the errors when one fails."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from webapp.smtp.addresses import bare
from webapp.smtp.client import Refused, Reply
from webapp.smtp.message import Message

Phase = Literal["connect", "greeting", "ehlo", "tls", "login", "sender", "recipient", "data", "dot"]

# The phases in which the answer may depend on the recipient's server or on the content.
AT_THE_MAIL = ("recipient", "data", "dot")

# How servers say, before any email is mentioned, that they have enough connections, of ours or in all.
CROWDED = re.compile(
    r"\b4\.3\.2\b|(too many|concurrent|maximum|limit).*\b(connection|session)s?", re.IGNORECASE | re.DOTALL
)

# Called with each answer that lets the conversation continue.
Tell = Callable[[Phase, Reply], None]


def nobody(_phase: Phase, _reply: Reply) -> None:
    """Tell nobody."""


class Command(NamedTuple):
    """A line sent before an email, and the first digit of an answer that lets it continue; a copy may be refused."""

    phase: Phase
    line: str
    expected: int = 2
    is_copy: bool = False


RESET = Command("sender", "rset")


class SmtpError(Exception):
    """The conversation ended without a 250 for the message.

    `phase` is the step that failed; `code` and `reply` are the server's, or None and the network's
    error. If it failed at "dot" without a code, the server may have taken the message.
    """

    def __init__(self, phase: Phase, code: int | None, reply: str) -> None:
        self.phase: Phase = phase
        self.code = code
        self.reply = reply
        super().__init__(f"{phase}: {reply}" if code is None else f"{phase}: {code} {reply}")

    @property
    def is_refusal(self) -> bool:
        """Whether the server refused only this email, and would go on with others."""
        return self.phase in AT_THE_MAIL and self.code not in {None, 421}


class Aborted(SmtpError):
    """We ended the conversation before the final dot: nothing was sent."""


class Crowded(SmtpError):
    """The server wants no more connections, and none of the open ones is ours."""


@contextmanager
def step(phase: Phase) -> Iterator[None]:
    """Turn an error of the server or the network into an SmtpError in this phase."""
    try:
        yield
    except Refused as refused:
        raise SmtpError(phase, *refused.reply) from refused
    except OSError as error:
        raise SmtpError(phase, None, f"{type(error).__name__}: {in_words(error)}") from error


def in_words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message} ({error.reason})"
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "this port does not begin with TLS: MAIL_USE_TLS is for port 587, MAIL_USE_SSL for 465"
    return str(error)


def is_crowded(error: SmtpError) -> bool:
    before_mails = error.phase in {"connect", "greeting", "ehlo", "tls", "login"}
    return before_mails and 400 <= (error.code or 0) < 500 and CROWDED.search(error.reply) is not None


def lines(commands: Sequence[Command]) -> bytes:
    return "".join(f"{command.line}\r\n" for command in commands).encode("ascii")


def accept(reply: Reply, expected: int = 2) -> Reply:
    """Return the reply if its code begins with this digit. Raises Refused, OSError."""
    if reply.code // 100 == expected:
        return reply
    if reply.code // 100 in {4, 5}:
        raise Refused(reply)
    raise OSError(f"the server answered out of turn: {reply.code} {reply.text}")


def envelope(message: Message) -> list[Command]:
    """Return the commands that precede an email. Raises ValueError."""
    return [
        Command("sender", f"mail FROM:<{bare(message.sender)}>"),
        *(Command("recipient", f"rcpt TO:<{bare(recipient)}>") for recipient in message.recipients),
        *(Command("recipient", f"rcpt TO:<{bare(copy)}>", is_copy=True) for copy in [*message.cc, *message.bcc]),
        Command("data", "data", expected=3),
    ]
