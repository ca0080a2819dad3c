"""A process's memory from email to email: how fast they go."""

from __future__ import annotations

import threading

# A mail in a busy worker's hands waits, while another worker might have it: so not for long. And each claim has
# a price, which more mails share.
BATCH_SECONDS = 0.5
BATCH_MAX = 50

# A batch that turns out to be slow ends after this: what is left of it is for whoever has time.
BATCH_LONGEST = 4 * BATCH_SECONDS

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
