"""The connections of a process: few, and kept open while there is work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from webapp.smtp.client import Deadline
from webapp.smtp.conversation import Conversation
from webapp.smtp.protocol import Aborted, Crowded, SmtpError, is_crowded

log = structlog.get_logger(__name__)

# Servers count connections, even idle ones. After this long we close them, for others to use.
IDLE_SECONDS = 2.0

# How long to believe a server that wants fewer connections than we may open.
FEWER_SECONDS = 60.0

# How often, and for how long, to ask again if the server wants none, since others have them all.
AGAIN_SECONDS = 1.0
CROWDED_SECONDS = 5.0


class Pool:
    def __init__(self, size: int, new: Callable[[], Conversation]) -> None:
        self.size = size
        self.new = new
        self.fewer, self.fewer_until = size, 0.0
        self.changed = threading.Condition()
        self.idle: list[Conversation] = []
        # Including those being opened or closed: the server may count them.
        self.lent = 0
        self.waiting = 0
        self.closer: threading.Thread | None = None

    def take(self, deadline: Deadline) -> Conversation:
        """Return an open connection as soon as one is free; give it back afterwards. Raises SmtpError."""
        crowded_at: float | None = None
        while True:
            conversation = self._wait_for_free(deadline)
            try:
                if not conversation.is_kept():
                    conversation.open(deadline)
            except BaseException as error:
                conversation.close()
                if not isinstance(error, SmtpError) or not is_crowded(error):
                    self.give_back(conversation)
                    raise
                if not self._make_do(conversation, error):
                    crowded_at = crowded_at or time.monotonic()
                    is_long = time.monotonic() - crowded_at > CROWDED_SECONDS
                    if is_long or deadline.share(of=1) < AGAIN_SECONDS:
                        raise Crowded(error.phase, error.code, error.reply) from error
                    with suppress(TimeoutError), deadline.at_most(AGAIN_SECONDS):
                        deadline.wait(time.sleep)
            else:
                return conversation

    def give_back(self, *conversations: Conversation) -> None:
        """Keep open conversations for the next email, and drop closed ones."""
        with self.changed:
            self.lent -= len(conversations)
            for conversation in conversations:
                if conversation.is_open:
                    conversation.last_used = time.monotonic()
                    self.idle.append(conversation)
            self.changed.notify_all()
            # Started when needed, and again in a forked process.
            if self.idle and not (self.closer and self.closer.is_alive()):
                self.closer = threading.Thread(target=self._close_when_idle, name="idle connections", daemon=True)
                # Failing to start a thread must not put an email that was accepted in doubt.
                with suppress(RuntimeError):
                    self.closer.start()

    def close_idle(self, longer_than: float = 0) -> None:
        """Close connections that have been idle for at least `longer_than` seconds."""
        before = time.monotonic() - longer_than
        with self.changed:
            old = [conversation for conversation in self.idle if conversation.last_used <= before]
            self.idle = [conversation for conversation in self.idle if conversation not in old]
            self.lent += len(old)
        for conversation in old:
            conversation.close()
        self.give_back(*old)

    def _make_do(self, turned_away: Conversation, error: SmtpError) -> bool:
        """Return whether others of ours are open; if so, that is how many the server wants for now."""
        with self.changed:
            others = self.lent - 1 + len(self.idle)
            if others:
                self.fewer, self.fewer_until = others, time.monotonic() + FEWER_SECONDS
            # Not earlier: a conversation that took its place by now would count as one that the server let in.
            self.give_back(turned_away)
        if others:
            log.warning("mail_connections_limited", connections=others, smtp_code=error.code, reply=error.reply)
        return others > 0

    def _wait_for_free(self, deadline: Deadline) -> Conversation:
        def take(seconds: float) -> Conversation | None:
            with self.changed:
                if free := self._free():
                    self.lent += 1
                else:
                    self.waiting += 1
                    self.changed.wait(seconds)
                    self.waiting -= 1
                return free

        try:
            return deadline.wait(take)
        except TimeoutError as error:
            raise Aborted("connect", None, f"no connection was free: {error}") from None

    def _free(self) -> Conversation | None:
        if self.idle:
            return self.idle.pop()
        most = self.fewer if time.monotonic() < self.fewer_until else self.size
        return self.new() if self.lent < most else None

    def _close_when_idle(self) -> None:
        while True:
            time.sleep(IDLE_SECONDS / 4)
            self.close_idle(IDLE_SECONDS)
            with self.changed:
                if not self.idle:
                    self.closer = None
                    return
