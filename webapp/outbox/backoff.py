"""How long an email waits for its next attempt."""

from __future__ import annotations

import random

BACKOFF_FIRST = 30.0
BACKOFF_MAX = 1800.0


def backoff(spent: int) -> float:
    """Return seconds until the attempt after `spent` ones: doubling up to half an hour, with jitter of a third."""
    longest: float = min(BACKOFF_MAX, BACKOFF_FIRST * 2.0**spent)
    return longest * random.uniform(0.67, 1)  # noqa: S311 - no secret  # nosec B311


# After a final dot without an answer an email is retried at most twice, since each retry may be a duplicate.
DOUBT_DELAYS = (30.0, 900.0)
