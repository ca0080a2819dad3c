"""How things went over time: throughput, latency and failures, for the plots and their tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Integer, cast, func, select

from webapp import totals
from webapp.attempts import DeliveryAttempt
from webapp.clock import db_now, seconds_between
from webapp.extensions import db
from webapp.outbox import OutgoingEmail


@dataclass(frozen=True)
class Span:
    """So many parts of so many seconds each."""

    parts: int
    seconds: float


SPANS = {"hour": Span(12, 300), "day": Span(24, 3600), "week": Span(28, 6 * 3600)}

# How an attempt ends that sent nothing, and in whose trouble.
REFUSED = ("deferred", "failed")
TROUBLED = ("returned", "lease_expired")


@dataclass(frozen=True)
class Part:
    """What happened from `start` on.

    `median`, `slowest`: seconds within which half, and 95 %, of the mails that were accepted then had been.
    """

    start: datetime
    accepted: int
    refused: int
    troubled: int
    median: float | None
    slowest: float | None


def series(span: Span) -> list[Part]:
    """Return the parts of a span that ends now, the oldest first."""
    attempts_age = cast(func.floor(seconds_between(DeliveryAttempt.finished_at, db_now()) / span.seconds), Integer)
    length = span.parts * span.seconds
    outcomes: dict[int, dict[str, int]] = {}
    for age, outcome, count in db.session.execute(
        select(attempts_age, DeliveryAttempt.outcome, func.count())
        .where(DeliveryAttempt.finished_at > db_now(-length))
        .group_by(attempts_age, DeliveryAttempt.outcome)
    ):
        outcomes.setdefault(age, {})[outcome] = count
    sent_age = cast(func.floor(seconds_between(OutgoingEmail.finished_at, db_now()) / span.seconds), Integer)
    bound = totals.accept_bound()
    took: dict[int, dict[str, int]] = {}
    for age, label, count in db.session.execute(
        select(sent_age, bound, func.count())
        .where(OutgoingEmail.finished_at > db_now(-length), OutgoingEmail.status == "sent")
        .group_by(sent_age, bound)
    ):
        took.setdefault(age, {})[label] = count
    now = db.session.scalar(select(db_now()))
    if now is None:
        raise AssertionError("a database always has a time")
    parts = []
    for age in reversed(range(span.parts)):
        by_outcome, by_bound = outcomes.get(age, {}), took.get(age, {})
        parts.append(
            Part(
                start=now - timedelta(seconds=(age + 1) * span.seconds),
                accepted=by_outcome.get("sent", 0),
                refused=sum(by_outcome.get(outcome, 0) for outcome in REFUSED),
                troubled=sum(by_outcome.get(outcome, 0) for outcome in TROUBLED),
                median=quantile(by_bound, 0.5),
                slowest=quantile(by_bound, 0.95),
            )
        )
    return parts


def quantile(counts: Mapping[str, int], share: float) -> float | None:
    """Return the bound in seconds that this share of the mails is within; infinite beyond the last bound."""
    left = share * sum(counts.values())
    if not left:
        return None
    for bound in totals.ACCEPT_BOUNDS:
        left -= counts.get(f"{bound:g}", 0)
        if left <= 0:
            return float(bound)
    return math.inf
