"""How fast emails are being sent, as each process remembers it from one to the next."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

# An email claimed by a busy worker waits although another worker could send it, so batches are short. Each claim also
# has a cost, which larger batches share.
BATCH_SECONDS = 0.5
BATCH_MAX = 50

# An email is put aside after PATIENCE_SECONDS, or PATIENCE_TIMES what the last one took, whichever is longer.
PATIENCE_SECONDS = 0.9
PATIENCE_TIMES = 4.0
MANY_ASIDE = 50


class BatchSize:
    """How many emails a worker claims at once: what it sends in BATCH_SECONDS at the pace of its last batch."""

    def __init__(self) -> None:
        self.seconds_each = BATCH_SECONDS

    def note(self, mails_sent: int, seconds: float) -> None:
        if mails_sent:
            self.seconds_each = max(0.001, seconds / mails_sent)

    def now(self) -> int:
        return min(BATCH_MAX, int(BATCH_SECONDS / self.seconds_each) or 1)


class Patience:
    """How long a worker waits for an answer while other emails wait for a worker: a few times as long as usual.

    One of several workers keeps waiting anyway, as does a lone one after it has put many emails aside: otherwise a
    server that is slow for everyone would never get to answer.
    """

    def __init__(self) -> None:
        # A first guess: long enough that connecting and signing in usually fit.
        self.usual = 0.5
        self.put_aside = 0
        self.waits_on: int | None = None
        self.lock = threading.Lock()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Time an email that this thread sends."""
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
        """Return whether this thread is the one that keeps waiting, until its email is done."""
        with self.lock:
            if self.waits_on is not None or (is_only and self.put_aside < MANY_ASIDE):
                self.put_aside += 1
                return False
            self.waits_on, self.put_aside = threading.get_ident(), 0
            return True


batch_size = BatchSize()
patience = Patience()
