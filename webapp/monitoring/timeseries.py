"""How things went over time: throughput, latency and failures, for the plots and their tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Select, select

from webapp import counters
from webapp.db.base import db
from webapp.db.clock import db_now


@dataclass(frozen=True)
class Span:
    """`parts` stretches of `seconds` each: whole hours, or an even division of one."""

    parts: int
    seconds: int


SPANS = {"hour": Span(12, 300), "day": Span(24, 3600), "week": Span(28, 6 * 3600)}

# How attempts end that sent nothing: refused, or through no fault of the email.
REFUSED = ("deferred", "failed")
TROUBLED = ("returned", "lease_expired")


@dataclass(frozen=True)
class Part:
    """A stretch of time, from `start` until the next one's.

    `median`, `slowest`: half, and 95 %, of the emails accepted in it took at most this many seconds.
    """

    start: datetime
    accepted: int
    refused: int
    troubled: int
    median: float | None
    slowest: float | None


def series(span: Span) -> list[Part]:
    """Return the parts of a span, the oldest first; the last one includes now."""
    now = db.session.scalar(select(db_now()))
    if now is None:
        raise AssertionError("a database always has a time")
    begin = now.timestamp() // span.seconds * span.seconds - (span.parts - 1) * span.seconds
    starts = [datetime.fromtimestamp(begin + place * span.seconds, UTC) for place in range(span.parts)]
    outcomes = _by_part(span, starts[0], counters.attempts)
    took = _by_part(span, starts[0], counters.accepted)
    return [
        Part(
            start=start,
            accepted=int(outcomes[place]["sent"]),
            refused=int(sum(outcomes[place][outcome] for outcome in REFUSED)),
            troubled=int(sum(outcomes[place][outcome] for outcome in TROUBLED)),
            median=quantile(took[place], 0.5),
            slowest=quantile(took[place], 0.95),
        )
        for place, start in enumerate(starts)
    ]


def _by_part(span: Span, begin: datetime, rows: Callable[..., Select[str, int]]) -> list[Counter[str]]:
    counted: list[Counter[str]] = [Counter() for _ in range(span.parts)]
    for start, label, value in counters.parts(rows, begin, span.seconds):
        place = int((start - begin).total_seconds() // span.seconds)
        counted[min(place, span.parts - 1)][label] += int(value)
    return counted


def quantile(counts: Mapping[str, int], share: float) -> float | None:
    """Return the bound in seconds that this share of the emails is within; infinite beyond the last, None if empty."""
    left = share * sum(counts.values())
    if not left:
        return None
    for bound in counters.ACCEPT_BOUNDS:
        left -= counts.get(f"{bound:g}", 0)
        if left <= 0:
            return float(bound)
    return math.inf
