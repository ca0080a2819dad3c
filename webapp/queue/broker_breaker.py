"""The breaker in front of the queue's broker."""

from __future__ import annotations

import sqlite3
import threading
import time
from types import TracebackType

import structlog
from redis import RedisError
from redis.exceptions import OutOfMemoryError

log = structlog.get_logger(__name__)
BREAKER_SECONDS = 5.0
BROKER_ERRORS = (sqlite3.Error, RedisError, OSError)


class BrokerDown(Exception):
    """The queue did not answer; a message may or may not have arrived."""


class Breaker:
    """After one failure nobody waits for the broker again for a while; then one thread tries.

    Use `with breaker:` around code that talks to the broker, and call `wrote()` after a write: a full Redis still
    answers reads, so they don't end its outage. Raises BrokerDown.
    """

    def __init__(self, seconds: float = BREAKER_SECONDS) -> None:
        self.seconds = seconds
        self.lock = threading.Lock()
        self.open_until: float | None = None
        self.down_since: float | None = None
        self.is_full = False
        self.failures = 0
        self.told: set[str] = set()

    def __enter__(self) -> None:
        with self.lock:
            if self.open_until is None:
                return
            if time.monotonic() < self.open_until:
                self.failures += 1
                raise BrokerDown("the broker failed a moment ago and is left alone for now")
            # This thread is the one that tries: the others are turned away until it is done.
            self.open_until = time.monotonic() + self.seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BROKER_ERRORS):
            self._note(error)
            raise BrokerDown(f"{type(error).__name__}: {error}") from error
        with self.lock:
            self.open_until = None
        if self.down_since is not None and not self.is_full:
            self._end()

    def wrote(self) -> None:
        """Note that the broker has room again, if it was full."""
        if self.is_full:
            self._end()

    def is_news(self, event: str) -> bool:
        """Return whether this is the first such event of this outage."""
        with self.lock:
            is_new = event not in self.told
            self.told.add(event)
        return is_new

    def _note(self, error: Exception) -> None:
        with self.lock:
            self.is_full = isinstance(error, OutOfMemoryError)
            # A full server refuses at once: nobody needs to leave it alone.
            self.open_until = None if self.is_full else time.monotonic() + self.seconds
            self.failures += 1
            if is_first := self.down_since is None:
                self.down_since = time.monotonic()
        if is_first:
            log.error("broker_down", error=f"{type(error).__name__}: {error}")

    def _end(self) -> None:
        with self.lock:
            since, failures = self.down_since, self.failures
            self.down_since, self.is_full, self.failures = None, False, 0
            self.told.clear()
        if since is not None:
            log.info("broker_up", seconds=round(time.monotonic() - since, 1), failures=failures)
