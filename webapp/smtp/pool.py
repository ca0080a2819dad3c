"""The connections of a process: few, kept while there is work, lent in the order in which they were asked for."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import structlog

from webapp.smtp.client import Patience
from webapp.smtp.conversation import Conversation
from webapp.smtp.protocol import Aborted, Crowded, SmtpError, is_crowded

log = structlog.get_logger(__name__)

# Servers count connections, idle ones too. After this they are free for others.
IDLE_SECONDS = 2.0

# A server that wants fewer connections than we may have is believed for so long.
FEWER_SECONDS = 60.0

# One that wants none, since others have them, is asked again so often, and for so long.
AGAIN_SECONDS = 1.0
CROWDED_SECONDS = 5.0


class Pool:
    def __init__(self, size: int, new: Callable[[], Conversation]) -> None:
        self.size = size
        self.new = new
        self.fewer, self.fewer_until = size, 0.0
        self.changed = threading.Condition()
        self.asking: deque[object] = deque()
        self.idle: list[Conversation] = []
        self.lent = 0
        self.closer: threading.Thread | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a connection."""
        return bool(self.asking)

    @contextmanager
    def lend(self, patience: Patience) -> Iterator[Conversation]:
        """Lend an open connection, and keep it afterwards if the server goes on with it. Raises SmtpError."""
        conversation = self._open(patience)
        try:
            yield conversation
        except BaseException as error:
            if not (isinstance(error, SmtpError) and error.is_refusal and conversation.goes_on):
                conversation.close()
            raise
        finally:
            self._take_back([conversation])

    def close_idle(self, longer_than: float = 0) -> None:
        """Close what nobody has used for so many seconds."""
        before = time.monotonic() - longer_than
        # Another thread is about to go on with what it has begun.
        mine = {None, threading.get_ident()}
        with self.changed:
            old = [
                conversation
                for conversation in self.idle
                if conversation.last_used <= before and (longer_than or conversation.begun_by in mine)
            ]
            self.idle = [conversation for conversation in self.idle if conversation not in old]
            # The server counts them until they are closed.
            self.lent += len(old)
        for conversation in old:
            conversation.close()
        self._take_back(old)

    def _open(self, patience: Patience) -> Conversation:
        crowded_at: float | None = None
        while True:
            conversation = self._take(patience)
            try:
                if not conversation.is_kept(patience):
                    conversation.open(patience)
            except BaseException as error:
                conversation.close()
                if not isinstance(error, SmtpError) or not is_crowded(error):
                    self._take_back([conversation])
                    raise
                if not self._make_do(conversation, error):
                    crowded_at = crowded_at or time.monotonic()
                    is_long = time.monotonic() - crowded_at > CROWDED_SECONDS
                    if is_long or patience.share(of=1) < AGAIN_SECONDS:
                        raise Crowded(error.phase, error.code, error.reply) from error
                    with suppress(TimeoutError), patience.at_most(AGAIN_SECONDS):
                        patience.wait(time.sleep)
            else:
                return conversation

    def _make_do(self, turned_away: Conversation, error: SmtpError) -> bool:
        """Return whether others of ours are open, which is as many as the server wants for now."""
        with self.changed:
            others = self.lent - 1 + len(self.idle)
            if others:
                self.fewer, self.fewer_until = others, time.monotonic() + FEWER_SECONDS
            # Not before: whoever took its place meanwhile would count as one whom the server let in.
            self._take_back([turned_away])
        if others:
            log.warning("mail_connections_limited", connections=others, smtp_code=error.code, reply=error.reply)
        return others > 0

    def _take(self, patience: Patience) -> Conversation:
        ticket = object()
        with self.changed:
            self.asking.append(ticket)

        def take(seconds: float) -> Conversation | None:
            with self.changed:
                free = self._free(is_first=self.asking[0] is ticket)
                if free is None:
                    self.changed.wait(seconds)
                else:
                    self.lent += 1
                return free

        try:
            return patience.wait(take)
        except TimeoutError as error:
            raise Aborted("connect", None, f"no connection was free: {error}") from None
        finally:
            with self.changed:
                self.asking.remove(ticket)
                self.changed.notify_all()

    def _free(self, *, is_first: bool) -> Conversation | None:
        me = threading.get_ident()
        for begun_by in [me, None] if is_first else [me]:
            for conversation in reversed(self.idle):
                if conversation.begun_by == begun_by:
                    self.idle.remove(conversation)
                    return conversation
        most = self.fewer if time.monotonic() < self.fewer_until else self.size
        return self.new() if is_first and self.lent + len(self.idle) < most else None

    def _take_back(self, conversations: list[Conversation]) -> None:
        with self.changed:
            self.lent -= len(conversations)
            for conversation in conversations:
                if conversation.is_open:
                    conversation.last_used = time.monotonic()
                    self.idle.append(conversation)
            self.changed.notify_all()
            # Begun when it is needed, and again in a process that was forked off.
            if self.idle and not (self.closer and self.closer.is_alive()):
                self.closer = threading.Thread(target=self._close_when_idle, name="idle connections", daemon=True)
                self.closer.start()

    def _close_when_idle(self) -> None:
        while True:
            time.sleep(IDLE_SECONDS / 4)
            self.close_idle(IDLE_SECONDS)
            with self.changed:
                if not self.idle:
                    self.closer = None
                    return
