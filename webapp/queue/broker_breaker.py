"""The breaker in front of the queue's broker."""

from __future__ import annotations

import sqlite3
import threading
import time
from types import TracebackType

import structlog
from redis import RedisError

log = structlog.get_logger(__name__)
BREAKER_SECONDS = 5.0
BROKER_ERRORS = (sqlite3.Error, RedisError, OSError)


class BrokerDown(Exception):
    """The queue did not answer; a message may or may not have arrived."""


class Breaker:
    """After one failure nobody waits for the broker again for a while; then one thread tries.

    Use `with breaker:` around code that talks to the broker. Raises BrokerDown.
    """

    def __init__(self, seconds: float = BREAKER_SECONDS) -> None:
        self.seconds = seconds
        self.lock = threading.Lock()
        self.open_until: float | None = None

    def __enter__(self) -> None:
        with self.lock:
            if self.open_until is None:
                return
            if time.monotonic() < self.open_until:
                raise BrokerDown("the broker failed a moment ago and is left alone for now")
            # This thread is the one that tries: the others are turned away until it is done.
            self.open_until = time.monotonic() + self.seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = isinstance(error, BROKER_ERRORS)
        with self.lock:
            was_open = self.open_until is not None
            self.open_until = time.monotonic() + self.seconds if failed else None
        if failed:
            if not was_open:
                log.error("broker_down", error=f"{type(error).__name__}: {error}")
            raise BrokerDown(f"{type(error).__name__}: {error}") from error
        if was_open:
            log.info("broker_up")
