"""What a process knows from mail to mail: how fast they go, how many workers are of use, and which ones it had."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from struct import Struct

# A mail in a busy worker's hands waits, while another worker might have it: so not for long. And each claim has
# a price, which more mails share.
BATCH_SECONDS = 0.5
BATCH_MAX = 50

# A batch that turns out to be slow ends after this: what is left of it is for whoever has time.
BATCH_LONGEST = 4 * BATCH_SECONDS

# A process that uses more than this of a core has no use for one more worker.
BUSY = 0.4
LOOK_SECONDS = 0.05

# An id, and until when it counts, by time.monotonic().
PLACE = Struct("=16sd")


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

    def _is_full(self) -> bool:
        if self.inside and (passed := time.monotonic() - self.looked_at) > LOOK_SECONDS:
            self._look(is_busy=self.cpu_seconds() - self.used > BUSY * passed)
        return self.inside >= self.most() or (self.inside > 0 and self.is_busy is not False)

    def _look(self, *, is_busy: bool | None) -> None:
        self.looked_at, self.used, self.is_busy = time.monotonic(), self.cpu_seconds(), is_busy


class Recent:
    """Ids that were added lately, each for so many seconds, or until it is discarded.

    Each has one place of so many, and is forgotten when another takes it: so a process that has sent 100,000 mails
    holds 24 bytes for each, where Python's own objects would take ten times as many.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.kept = bytearray(places * PLACE.size)

    def add(self, email_id: uuid.UUID, seconds: float = math.inf) -> None:
        self._keep(email_id, until=time.monotonic() + seconds)

    def discard(self, email_ids: Iterable[uuid.UUID]) -> None:
        for email_id in email_ids:
            if email_id in self:
                self._keep(email_id, until=0)

    def __contains__(self, email_id: uuid.UUID) -> bool:
        kept, until = PLACE.unpack_from(self.kept, self._place(email_id))
        return bool(kept == email_id.bytes and time.monotonic() < until)

    def _keep(self, email_id: uuid.UUID, until: float) -> None:
        # One call, which no other thread sees half of.
        PLACE.pack_into(self.kept, self._place(email_id), email_id.bytes, until)

    def _place(self, email_id: uuid.UUID) -> int:
        return email_id.int % self.places * PLACE.size
