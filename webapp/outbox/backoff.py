"""How long a mail waits for its next try."""

from __future__ import annotations

import random

BACKOFF_FIRST = 30.0
BACKOFF_MAX = 1800.0


def backoff(spent: int) -> float:
    """Return seconds until the next try after so many attempts: doubling, at most half an hour, spread by a third."""
    longest: float = min(BACKOFF_MAX, BACKOFF_FIRST * 2.0**spent)
    return longest * random.uniform(0.67, 1)  # noqa: S311 - no secret  # nosec B311


# After a final dot without an answer a mail is tried twice more at most, since each try may be a duplicate.
DOUBT_DELAYS = (30.0, 900.0)
