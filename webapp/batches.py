"""What a process remembers from mail to mail: how fast they went, and which ones."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable

# A mail in a busy worker's hands waits, while another worker might have it: so not for long. And each claim has
# a price, which more mails share.
BATCH_SECONDS = 0.5
BATCH_MAX = 25

# A batch that turns out to be slow ends after this: what is left of it is for whoever has time.
BATCH_LONGEST = 4 * BATCH_SECONDS


class Batch:
    """How many mails a worker takes at once: what it sends in BATCH_SECONDS, as fast as the last ones went."""

    def __init__(self) -> None:
        self.seconds_each = BATCH_SECONDS

    def note(self, mails_sent: int, seconds: float) -> None:
        if mails_sent:
            self.seconds_each = max(0.001, seconds / mails_sent)

    def size(self) -> int:
        return min(BATCH_MAX, int(BATCH_SECONDS / self.seconds_each) or 1)


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
