"""How fast emails go just now, as each process remembers from one to the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# A mail in a busy worker's hands waits, while another worker might have it: so not for long. And each claim has
# a price, which more mails share.
BATCH_SECONDS = 0.5
BATCH_MAX = 50

# A mail is not put aside before this time, nor before so many times the time that the last one took.
PATIENCE_SECONDS = 0.9
PATIENCE_TIMES = 4.0
MANY_ASIDE = 50


class BatchSize:
    """How many mails a worker takes at once: what it sends in BATCH_SECONDS, as fast as the last ones went."""

    def __init__(self) -> None:
        self.seconds_each = BATCH_SECONDS

    def note(self, mails_sent: int, seconds: float) -> None:
        if mails_sent:
            self.seconds_each = max(0.001, seconds / mails_sent)

    def now(self) -> int:
        return min(BATCH_MAX, int(BATCH_SECONDS / self.seconds_each) or 1)


class Patience:
    """How long a worker waits for an answer while other mails wait for a worker: a few times as long as usual.

    One of several waits on all the same, or a single one once it has put many aside: else a server that is slow for
    everybody would never be heard out.
    """

    def __init__(self) -> None:
        # Until it is known: with this, connecting and signing in take no longer than the patience, mostly.
        self.usual = 0.5
        self.put_aside = 0
        self.waits_on: int | None = None
        self.lock = threading.Lock()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Take the time of a mail that this thread sends."""
        begun = time.monotonic()
        try:
            yield
            self.usual, self.put_aside = time.monotonic() - begun, 0
        finally:
            if self.waits_on == threading.get_ident():
                self.waits_on = None

    def is_over(self, seconds: float) -> bool:
        longest = max(PATIENCE_SECONDS, PATIENCE_TIMES * self.usual)
        return self.waits_on != threading.get_ident() and seconds >= longest

    def may_wait_on(self, *, is_only: bool) -> bool:
        """Return whether this thread is the one that waits on, until its mail is done with."""
        with self.lock:
            if self.waits_on is not None or (is_only and self.put_aside < MANY_ASIDE):
                self.put_aside += 1
                return False
            self.waits_on, self.put_aside = threading.get_ident(), 0
            return True


batch_size = BatchSize()
patience = Patience()
