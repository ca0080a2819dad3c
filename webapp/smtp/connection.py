"""Flask-Mail with what it lacks: a deadline for each email, verified TLS, a connection pool, and precise errors."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Self

import flask_mail
from flask import Flask

from webapp.smtp.client import Deadline
from webapp.smtp.conversation import Conversation
from webapp.smtp.message import Message
from webapp.smtp.pool import Pool
from webapp.smtp.protocol import SmtpError, Tell, envelope, nobody


class Mail(flask_mail.Mail):
    """Flask-Mail with one connection pool for all threads of a process."""

    def init_app(self, app: Flask) -> flask_mail._Mail:
        self.stopping = False
        self.hears_ahead = True
        self.state = state = super().init_app(app)
        # Flask-Mail sends nothing while testing; our tests have a real server.
        state.suppress = False
        self.timeout: float = app.config["MAIL_TIMEOUT"]
        self.answer_timeout: float = app.config["MAIL_ANSWER_TIMEOUT"]
        self.ehlo_name: str = app.config["MAIL_EHLO_NAME"]
        self.pool = Pool(app.config["MAIL_CONNECTIONS"], lambda: Conversation(self))
        # As many workers may send at once: one without a connection would hold emails that others could send.
        self.places = threading.Semaphore(app.config["MAIL_CONNECTIONS"])
        self.__dict__.pop("tls", None)
        return state

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The certificates we trust. Shared, since loading them takes 50 ms, and lazy, since the web needs none."""
        return ssl.create_default_context()

    def has_place(self) -> bool:
        """Return whether one more worker could send right now."""
        is_free = self.places.acquire(blocking=False)
        if is_free:
            self.places.release()
        return is_free

    def connect(self) -> Connection:
        return Connection(self)

    @contextmanager
    def call(self, deadline: Deadline, tell: Tell = nobody) -> Iterator[Conversation]:
        """Open a connection outside the pool and sign in, reporting each answer to `tell`. Raises SmtpError."""
        conversation = Conversation(self, tell)
        try:
            conversation.open(deadline)
            yield conversation
        finally:
            conversation.close()

    def try_out(self, message: Message, seconds: float, tell: Tell) -> None:
        """Send a message on a new connection, reporting each answer to `tell`. Raises SmtpError."""
        deadline = Deadline(seconds, lambda: self.stopping)
        with self.call(deadline, tell) as conversation:
            conversation.begin(envelope(message), deadline)
            tell("dot", conversation.finish(stuffed(message), lambda: True, []))

    def close(self) -> None:
        """Close the idle connections, as when the mail server is down or a worker ends."""
        self.pool.close_idle()

    def stop(self) -> None:
        """End every conversation soon: at once before its final dot, within STOPPING_SECONDS after it."""
        self.stopping = True


class Connection(flask_mail.Connection):
    """A right to send: each email takes a connection from the pool, and returns it unless it began the next email."""

    mail: Mail
    begun: Conversation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_begun()

    def send(  # type: ignore[override] # the server's reply is worth keeping
        self,
        message: Message,
        *,
        may_finish: Callable[[], bool] = lambda: True,
        while_waiting: Callable[[float], None] | None = None,
        following: Message | None = None,
    ) -> str:
        """Hand the message over; return the server's final reply, "250 …". Raises SmtpError.

        It has MAIL_TIMEOUT seconds in all up to the final dot, and MAIL_ANSWER_TIMEOUT for the answer to that.
        `may_finish` is asked when only the final dot is missing; if it says no, nothing is sent (Aborted).
        `while_waiting` is called about once a second with how long the email has waited, for whatever reason.
        Refused copies (cc, bcc) are logged; a refused recipient raises.
        `following` is the message to send next, if any: it is begun behind the dot, to save a round trip.
        """
        mail = self.mail
        content = stuffed(message)
        commands = envelope(message)
        deadline = Deadline(mail.timeout, lambda: mail.stopping, while_waiting)
        if self.begun and self.begun.said_ahead != commands:
            # The server is waiting for a different email, and that can't be taken back.
            self._end_begun()
        while True:
            with self._conversation(deadline) as conversation:
                if conversation.begin(commands, deadline):
                    ahead = following if following and mail.hears_ahead and not mail.pool.waiting else None
                    reply = conversation.finish(content, may_finish, envelope(ahead) if ahead else [])
                    return f"{reply.code} {reply.text}"

    @contextmanager
    def _conversation(self, deadline: Deadline) -> Iterator[Conversation]:
        conversation, self.begun = self.begun or self.mail.pool.take(deadline), None
        try:
            yield conversation
        except BaseException as error:
            goes_on = conversation.is_in_order or conversation.said_ahead
            if not (isinstance(error, SmtpError) and error.is_refusal and goes_on):
                conversation.close()
            raise
        finally:
            if conversation.said_ahead:
                self.begun = conversation
            else:
                self.mail.pool.give_back(conversation)

    def _end_begun(self) -> None:
        if self.begun:
            self.begun.close()
            self.mail.pool.give_back(self.begun)
            self.begun = None


def stuffed(message: Message) -> bytes:
    """Return the message with leading dots doubled, ready for its final dot (RFC 5321, 4.5.2)."""
    content = re.sub(rb"(?m)^\.", b"..", message.content)
    return content if content.endswith(b"\r\n") else content + b"\r\n"
