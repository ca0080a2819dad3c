"""What a process knows from mail to mail: how fast they go, how many workers are of use, and which ones it had."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# A mail in a busy worker's hands waits, while another worker might have it: so not for long. And each claim has
# a price, which more mails share.
BATCH_SECONDS = 0.5
BATCH_MAX = 25

# A batch that turns out to be slow ends after this: what is left of it is for whoever has time.
BATCH_LONGEST = 4 * BATCH_SECONDS

# A process that uses more than this of a core has no use for one more worker.
BUSY = 0.4
LOOK_SECONDS = 0.1


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
    and each mail costs more; where these are far, or hang, each has time for others.
    """

    def __init__(self, cpu_seconds: Callable[[], float] = time.process_time) -> None:
        self.cpu_seconds = cpu_seconds
        self.turn = threading.Condition()
        self.inside = 0

    @contextmanager
    def lane(self) -> Iterator[None]:
        """Wait until one more worker is of use; it is inside until the block ends."""
        with self.turn:
            while self.inside and self._is_busy():
                self.turn.wait(LOOK_SECONDS)
            self.inside += 1
            # What one more makes of it is not known before the next look.
            self._look(is_busy=True)
        try:
            yield
        finally:
            with self.turn:
                self.inside -= 1
                self.turn.notify()

    def _is_busy(self) -> bool:
        if (passed := time.monotonic() - self.looked_at) > LOOK_SECONDS:
            self._look(is_busy=self.cpu_seconds() - self.used > BUSY * passed)
        return self.is_busy

    def _look(self, *, is_busy: bool) -> None:
        self.looked_at, self.used, self.is_busy = time.monotonic(), self.cpu_seconds(), is_busy


class Recent:
    """The last ids that were added, so many of them; each for so many seconds, or until it is discarded."""

    def __init__(self, size: int) -> None:
        self.until: OrderedDict[uuid.UUID, float] = OrderedDict()
        self.size = size
        self.lock = threading.Lock()

    def add(self, email_id: uuid.UUID, seconds: float = math.inf) -> None:
        with self.lock:
            self.until[email_id] = time.monotonic() + seconds
            if len(self.until) > self.size:
                self.until.popitem(last=False)

    def discard(self, email_ids: Iterable[uuid.UUID]) -> None:
        with self.lock:
            for email_id in email_ids:
                self.until.pop(email_id, None)

    def __contains__(self, email_id: uuid.UUID) -> bool:
        return time.monotonic() < self.until.get(email_id, 0)
