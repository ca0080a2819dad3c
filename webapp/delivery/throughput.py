"""A process's memory from email to email: how fast they go, how many workers are of use, and which ones it had."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# A mail in a busy worker's hands waits, while another worker might have it: so not for long. And each claim has
# a price, which more mails share.
BATCH_SECONDS = 0.5
BATCH_MAX = 50

# A batch that turns out to be slow ends after this: what is left of it is for whoever has time.
BATCH_LONGEST = 4 * BATCH_SECONDS

# A process that uses more than this of a core has no use for one more worker.
BUSY = 0.4
LOOK_SECONDS = 0.05

# Hints of a mail that this process has in its hands, or sent, come within this time.
HEARD_SECONDS = 30.0

# A mail is not put aside before this time, nor before so many times the time that the last one took.
PATIENCE_SECONDS = 0.9
PATIENCE_TIMES = 4.0
MANY_ASIDE = 50


class Batch:
    """How many mails a worker takes at once: what it sends in BATCH_SECONDS, as fast as the last ones went."""

    def __init__(self) -> None:
        self.seconds_each = BATCH_SECONDS

    def note(self, mails_sent: int, seconds: float) -> None:
        if mails_sent:
            self.seconds_each = max(0.001, seconds / mails_sent)

    def size(self) -> int:
        return min(BATCH_MAX, int(BATCH_SECONDS / self.seconds_each) or 1)


class Lanes:
    """How many workers of this process send at once: one more only while those at work mostly wait.

    They share one interpreter. Where the database and the mail server are near, two of them send hardly more than one,
    and each mail costs more; where these are far, or hang, each has time for others. `most`: so many have a connection.
    """

    def __init__(
        self, cpu_seconds: Callable[[], float] = time.process_time, most: Callable[[], float] = lambda: math.inf
    ) -> None:
        self.most = most
        self.cpu_seconds = cpu_seconds
        self.turn = threading.Condition()
        self.inside = 0

    @contextmanager
    def lane(self) -> Iterator[None]:
        """Wait until one more worker is of use; it is inside until the block ends."""
        with self.turn:
            while self._is_full():
                self.turn.wait(LOOK_SECONDS)
            self.inside += 1
            # What one more makes of it is not known before the next look.
            self._look(is_busy=None)
        try:
            yield
        finally:
            with self.turn:
                self.inside -= 1
                self.turn.notify()

    def are_full(self) -> bool:
        """Return whether one more worker is known to be of no use: those inside go on while mails are due."""
        with self.turn:
            return self._is_full() and self.is_busy is True

    def are_all_taken(self) -> bool:
        """Return whether nobody is free, whatever those inside do."""
        return self.inside >= self.most()

    def _is_full(self) -> bool:
        if self.inside and (passed := time.monotonic() - self.looked_at) > LOOK_SECONDS:
            self._look(is_busy=self.cpu_seconds() - self.used > BUSY * passed)
        return self.are_all_taken() or (self.inside > 0 and self.is_busy is not False)

    def _look(self, *, is_busy: bool | None) -> None:
        self.looked_at, self.used, self.is_busy = time.monotonic(), self.cpu_seconds(), is_busy


class Recent:
    """Ids that were added within the last HEARD_SECONDS, or until they are discarded.

    Not for longer: what becomes of a mail later, as when its database falls back to an earlier state, is news.
    """

    def __init__(self) -> None:
        self.until: dict[uuid.UUID, float] = {}
        self.lock = threading.Lock()

    def add(self, email_id: uuid.UUID) -> None:
        now = time.monotonic()
        with self.lock:
            # Each lives as long, so the oldest are in front.
            while self.until and self.until[first := next(iter(self.until))] <= now:
                del self.until[first]
            self.until.pop(email_id, None)
            self.until[email_id] = now + HEARD_SECONDS

    def discard(self, email_ids: Iterable[uuid.UUID]) -> None:
        with self.lock:
            for email_id in email_ids:
                self.until.pop(email_id, None)

    def __contains__(self, email_id: uuid.UUID) -> bool:
        return time.monotonic() < self.until.get(email_id, 0)


class Patience:
    """How long a worker waits for an answer while other mails wait for a worker: a few times as long as usual.

    One of several waits on all the same, or a single one once it has put many aside: else a server that is slow for
    everybody would never be heard out.
    """

    def __init__(self) -> None:
        # Until it is known: with this, connecting and signing in take no longer than the patience, mostly.
        self.usual = 0.5
        self.put_aside = 0
        self.hearing_out = threading.Lock()

    def note(self, seconds: float) -> None:
        """Take it that a mail was sent within so many seconds."""
        self.usual, self.put_aside = seconds, 0

    def is_over(self, seconds: float) -> bool:
        return seconds >= max(PATIENCE_SECONDS, PATIENCE_TIMES * self.usual)

    def hear_out(self, *, is_only: bool) -> bool:
        """Return whether this worker is the one that waits on; it calls heard_out() then."""
        if (is_only and self.put_aside < MANY_ASIDE) or not self.hearing_out.acquire(blocking=False):
            self.put_aside += 1
            return False
        self.put_aside = 0
        return True

    def heard_out(self) -> None:
        self.hearing_out.release()
