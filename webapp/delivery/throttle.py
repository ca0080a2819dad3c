"""The limits on all emails together: how many may be sent, and how fast. All workers take turns in one line."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import structlog
from flask import current_app
from limits import RateLimitItem
from sqlalchemy import ScalarSelect, case, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import Model, db
from webapp.db.clock import db_now, is_ahead, was_lately
from webapp.db.locks import try_lock
from webapp.outbox.outgoing_email import OutgoingEmail

log = structlog.get_logger(__name__)

# At most this many workers stand in line: a turn further ahead was given while the clock was wrong.
LONGEST = 100


class MailPace(Model):
    """One row, shared by all workers: when the next turn is."""

    __tablename__ = "mail_pace"

    id: Mapped[int] = mapped_column(primary_key=True)
    next_at: Mapped[datetime | None]


def is_pace(limit: RateLimitItem) -> bool:
    """Return whether the limit is per second: emails are then spaced evenly instead of sent in bursts."""
    return limit.GRANULARITY.name == "second"


def interval() -> float:
    """Return the seconds from one turn to the next; 0 without a per-second limit."""
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_TOTAL"]
    return max((limit.get_expiry() / limit.amount for limit in limits if is_pace(limit)), default=0.0)


def take_turn() -> float:
    """Take the next turn and commit; return in how many seconds it is."""
    if not (seconds := interval()):
        return 0.0
    next_turn = case((is_ahead(MailPace.next_at, LONGEST * seconds), MailPace.next_at), else_=db_now())
    # A worker that comes at the same moment waits here a few milliseconds until the commit.
    pace = db.session.execute(
        select(next_turn.label("turn"), db_now().label("now")).select_from(MailPace).with_for_update(of=MailPace)
    ).one()
    db.session.execute(
        update(MailPace).values(next_at=pace.turn + timedelta(seconds=seconds)),
        execution_options={"synchronize_session": False},
    )
    db.session.commit()
    return max(0.0, float((pace.turn - pace.now).total_seconds()))


def is_full() -> bool:
    """Return whether emails are waiting for their turns."""
    seconds = interval()
    return bool(seconds) and db.session.scalar(select(is_ahead(MailPace.next_at, LONGEST * seconds))) is True


# Counting all emails takes longer than sending one, so each process counts only this often.
COUNT_AGAIN_SECONDS = 1.0

# More than all workers together send between two counts: with this few left, every claim counts.
NEAR = 2000

# How long a worker waits while another one counts, and how often it looks.
WAIT_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 0.02

NO_LIMIT = 2**31

# Of each total limit, one email in this many is reserved for what account owners ask for and for notices.
KEPT = 5


class Allowance(NamedTuple):
    """How many emails may be claimed now, and whether they may be signups'."""

    mails: int
    signups: bool = True


def spent() -> str | None:
    """Return the total limit that signups have reached, if any; each process counts once a second."""
    return _total().spent


def allowance() -> Allowance:
    """Return how many emails may be claimed now under the total limits. The caller commits.

    Near a limit, one worker at a time counts and claims until that commit, so that all of them together keep to it.
    """
    total = _total()
    if total.left > NEAR:
        return Allowance(total.left)
    if total.for_owners <= 0 or not _lock_total():
        return Allowance(0)
    for_signups, for_owners = _left(*_counts())
    return Allowance(for_signups) if for_signups > 0 else Allowance(max(0, for_owners), signups=False)


def _lock_total() -> bool:
    """Return whether this worker got the lock on counting. It waits only briefly: a frozen worker may not let go."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not (locked := try_lock(["budget:total"])) and time.monotonic() < give_up_at:
        time.sleep(LOOK_AGAIN_SECONDS)
    return bool(locked)


@dataclass
class Total:
    """This process's view of all emails: which limit is reached, how many are left, and when to count again."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    count_at: float = 0.0
    spent: str | None = None
    left: int = 0
    for_owners: int = 0


def _total() -> Total:
    total: Total = current_app.extensions.setdefault("mail_total", Total())
    # On SQLite whoever has a transaction open keeps all others from beginning one. So everybody begins it before taking
    # the lock: two threads that each have one of both would wait for each other.
    db.session.connection()
    with total.lock:
        if time.monotonic() >= total.count_at:
            total.count_at = time.monotonic() + COUNT_AGAIN_SECONDS
            sent, in_hand = _counts()
            spent = next((str(limit) for limit, mails in sent if mails >= limit.amount - kept(limit)), None)
            if spent and not total.spent:
                log.error("mail_limit_reached", limit=spent)
            elif total.spent and not spent:
                log.info("mail_limit_over", limit=total.spent)
            total.spent = spent
            total.left, total.for_owners = _left(sent, in_hand)
    return total


def kept(limit: RateLimitItem) -> int:
    """Return how many emails of a total limit signups may not use."""
    return max(1, limit.amount // KEPT) if limit.amount > 1 else 0


def _counts() -> tuple[list[tuple[RateLimitItem, int]], int]:
    """Return each total limit and how many emails were sent within it, and how many are being sent.

    Except for per-second limits: turns enforce those.
    """
    limits = [limit for limit in current_app.config["MAIL_LIMIT_TOTAL"] if not is_pace(limit)]
    in_hand = select(func.count()).where(OutgoingEmail.status == "sending").scalar_subquery()
    # In one statement: between two, an email would go from being sent to sent, and be counted in neither.
    *sent, sending = db.session.execute(select(*(_sent(limit) for limit in limits), in_hand)).one()
    return list(zip(limits, sent, strict=True)), sending


def _sent(limit: RateLimitItem) -> ScalarSelect[int]:
    """Return the number of emails sent within the limit's period, counting no further than the limit."""
    within = (
        select(OutgoingEmail.sent_at).where(was_lately(OutgoingEmail.sent_at, limit.get_expiry())).limit(limit.amount)
    )
    return select(func.count()).select_from(within.subquery()).scalar_subquery()


def _left(sent: list[tuple[RateLimitItem, int]], in_hand: int) -> tuple[int, int]:
    """Return how many more emails may be sent now: for signups, and for owners. Those being sent count as sent."""
    left = [(limit.amount - mails - in_hand, kept(limit)) for limit, mails in sent]
    return min((owners - kept for owners, kept in left), default=NO_LIMIT), min(
        (owners for owners, _kept in left), default=NO_LIMIT
    )
