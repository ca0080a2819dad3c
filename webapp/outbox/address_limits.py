"""How many mails may go to one mailbox, and in all. Over that nothing is refused: the mail waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import structlog
from flask import current_app
from limits import RateLimitItem
from sqlalchemy import (
    ColumnElement,
    Uuid,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased

from webapp.db.clock import db_now, was_lately
from webapp.delivery import throttle
from webapp.extensions import db, table, try_lock
from webapp.outbox import attempts, claims, outgoing_email
from webapp.outbox.outgoing_email import OutgoingEmail

log = structlog.get_logger(__name__)

# Counting all mails takes longer than sending one does, so a process counts once in a while.
COUNT_AGAIN_SECONDS = 1.0

# More than all workers together send until a process counts again: with no more left, each claim counts.
NEAR = 2000
NO_LIMIT = 2**31

# Of each limit in all a part is kept for what owners ask for, and for notices, and signups wait.
KEPT = 5

# Of those that wait for a mailbox the first goes so long before the others, which mostly end with that.
HEAD_START = 5.0

# Whoever finds that another worker decides about a mailbox comes back then.
MEANWHILE = 0.5
LOOK_AGAIN_SECONDS = 0.02


class Room(NamedTuple):
    """How many mails may be claimed now, and whether these may be signups'."""

    mails: int
    signups: bool = True


def admit(claimed: Sequence[OutgoingEmail]) -> list[OutgoingEmail]:
    """Return the claimed mails that may go to their mailboxes now; the others wait.

    The caller commits.
    """
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    budgets = {email.budget for email in claimed if email.budget is not None}
    if not budgets or not limits:
        return list(claimed)
    # Two workers with a mail each to one mailbox would both find that it may go.
    locked = try_lock(f"budget:{budget}" for budget in budgets)
    busy = {budget for budget in budgets if f"budget:{budget}" not in locked}
    claims.let_wait([email for email in claimed if email.budget in busy], MEANWHILE)
    admitted = [email for email in claimed if email.budget not in busy]
    for budget in _shared(budgets - busy, limits):
        rivals = [email for email in admitted if email.budget == budget]
        held = _hold_what_is_too_much(budget, rivals, limits)
        admitted = [email for email in admitted if email not in held]
    return admitted


def _shared(budgets: set[str], limits: list[RateLimitItem]) -> set[str]:
    """Return the budgets that had another mail lately, or have another that waits or is being sent: few, mostly."""
    return set(
        db.session.scalars(
            select(OutgoingEmail.budget)
            .where(OutgoingEmail.budget.in_(budgets), _counts(limits) | (OutgoingEmail.status == "queued"))
            .group_by(OutgoingEmail.budget)
            .having(func.count() > 1)
        )
    )


def _counts(limits: list[RateLimitItem]) -> ColumnElement[bool]:
    """Return what is true of a mail that counts: it was sent within the longest limit, or is in a worker's hands."""
    longest = max(limit.get_expiry() for limit in limits)
    return or_(was_lately(OutgoingEmail.sent_at, longest), OutgoingEmail.status == "sending")


def _hold_what_is_too_much(
    budget: str, rivals: list[OutgoingEmail], limits: list[RateLimitItem]
) -> list[OutgoingEmail]:
    """Let those of a mailbox' claimed mails that are over its limit wait, and all that wait for it with them."""
    for n, email in enumerate(rivals):
        if reached := _reached(email, limits, rivals[n:]):
            until, reason = reached
            claims.hold(rivals[n:], until, reason)
            _line_up(budget, until, reason)
            log.info("email_held", email_id=str(email.id), mails=len(rivals) - n, reason=reason)
            return rivals[n:]
        email.is_awaited = True
    return []


def _line_up(budget: str, until: datetime, reason: str) -> None:
    """Let all mails that wait for a mailbox wait until then, and let one of them go before the others.

    That is the newest whose link serves whoever has waited longest.
    """
    ours, waiting = aliased(OutgoingEmail), [OutgoingEmail.budget == budget, OutgoingEmail.status == "queued"]
    oldest = db.session.scalar(select(OutgoingEmail).where(*waiting).order_by(OutgoingEmail.created_at).limit(1))
    if oldest is None:
        return
    first = (
        select(OutgoingEmail.id)
        .join(ours, ours.id == oldest.id)
        .where(*waiting, or_(OutgoingEmail.id == oldest.id, _serves(OutgoingEmail, ours)))
        .order_by(OutgoingEmail.created_at.desc())
        .limit(1)
    )
    turn = case((OutgoingEmail.id == db.session.scalar(first), until), else_=until + timedelta(seconds=HEAD_START))
    was_held = OutgoingEmail.dedupe_key == outgoing_email.HELD_KEY
    # What is not due yet tells its story first, and is held then.
    newly = db.session.scalars(
        select(OutgoingEmail.id).where(*waiting, OutgoingEmail.next_attempt_at <= db_now(), ~was_held)
    ).all()
    in_line = was_held & (OutgoingEmail.next_attempt_at < until + timedelta(seconds=HEAD_START))
    lined_up = db.session.scalars(
        update(OutgoingEmail)
        .where(outgoing_email.unheld(*waiting, in_line | OutgoingEmail.id.in_(newly)))
        .values(next_attempt_at=turn, hinted_at=None, dedupe_key=outgoing_email.HELD_KEY)
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    )
    attempts.record_held(set(newly).intersection(lined_up), reason)


def _serves(newer: Any, older: Any) -> ColumnElement[bool]:
    """Return whether the link of one mail serves whoever waits for another.

    A signup's proves its address, for whichever signup of it, and one for a forgotten password leads to its address'
    account; all others are bound to their own accounts.
    """
    binds_nobody = or_(
        *(newer.budget.startswith(f"{kind}:") for kind in (outgoing_email.SIGNUPS, outgoing_email.RESETS))
    )
    serves: ColumnElement[bool] = (
        (newer.budget == older.budget)
        & (func.lower(newer.to_address) == func.lower(older.to_address))
        & (binds_nobody | (newer.user_id == older.user_id))
    )
    return serves


def _ended() -> Any:
    """Return what ends the mails that wait and are older than one that was sent, where its link serves them."""
    older, sent = table(OutgoingEmail).alias("older"), table(OutgoingEmail).alias("sent_now")
    free = (
        select(older.c.id)
        .join(sent, sent.c.id == bindparam("mail", type_=Uuid))
        .where(
            older.c.status == "queued",
            older.c.id != sent.c.id,
            older.c.created_at <= sent.c.created_at,
            _serves(sent.c, older.c),
        )
        .with_for_update(skip_locked=True, of=older)
    )
    return (
        update(table(OutgoingEmail))
        .where(table(OutgoingEmail).c.id.in_(free))
        .values(
            status="canceled",
            finished_at=db_now(),
            last_error_class=literal(outgoing_email.SUPERSEDED),
            last_error=literal("a newer mail to its address was sent"),
        )
    )


# What a mail that was sent ends, made once.
ENDED = _ended()


def spent() -> str | None:
    """Return which limit of mails in all signups have reached, if any; this process counts them once a second."""
    return _total().spent


def room() -> Room:
    """Return how many mails may be claimed now, by the limits in all. The caller commits.

    Near a limit nobody else is told before that commit, so that all workers together keep to it.
    """
    total = _total()
    if total.left > NEAR:
        return Room(total.left)
    if total.for_owners <= 0 or not _lock_total():
        return Room(0)
    for_signups, for_owners = _left()
    return Room(for_signups) if for_signups > 0 else Room(max(0, for_owners), signups=False)


def _lock_total() -> bool:
    """Return whether this worker alone counts now. Others are done in a moment; one that is frozen never is."""
    give_up_at = time.monotonic() + MEANWHILE
    while not (locked := try_lock(["budget:total"])) and time.monotonic() < give_up_at:
        time.sleep(LOOK_AGAIN_SECONDS)
    return bool(locked)


@dataclass
class Total:
    """What this process knows of all mails: which limit is reached, how many are left, and when to count again."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    count_at: float = 0.0
    spent: str | None = None
    left: int = 0
    for_owners: int = 0


def _total() -> Total:
    total: Total = current_app.extensions.setdefault("mail_total", Total())
    with total.lock:
        if time.monotonic() >= total.count_at:
            total.count_at = time.monotonic() + COUNT_AGAIN_SECONDS
            spent = next((str(limit) for limit in _limits() if _sent(limit) >= limit.amount - kept(limit)), None)
            if spent and not total.spent:
                log.error("mail_limit_reached", limit=spent)
            elif total.spent and not spent:
                log.info("mail_limit_over", limit=total.spent)
            total.spent = spent
            total.left, total.for_owners = _left()
    return total


def kept(limit: RateLimitItem) -> int:
    """Return how many mails of a limit in all are none of signups'."""
    return max(1, limit.amount // KEPT) if limit.amount > 1 else 0


def _reached(
    email: OutgoingEmail, limits: list[RateLimitItem], undecided: Sequence[OutgoingEmail]
) -> tuple[datetime, str] | None:
    """Return until when the mailbox gets no more, and why; nothing when it may get this mail."""
    # What is being sent may arrive.
    went_at = func.coalesce(OutgoingEmail.sent_at, db_now(), type_=OutgoingEmail.sent_at.type)
    rows = db.session.execute(
        select(went_at.label("went_at"), db_now().label("now"))
        .where(
            OutgoingEmail.budget == email.budget,
            OutgoingEmail.id.not_in([other.id for other in undecided]),
            _counts(limits),
        )
        .order_by(went_at.desc())
        .limit(max(limit.amount for limit in limits))
    ).all()
    waits = [
        (rows[limit.amount - 1].went_at + timedelta(seconds=limit.get_expiry()), f"its mailbox got {limit}")
        for limit in limits
        if len(rows) >= limit.amount
    ]
    until, reason = max(waits, default=(None, ""))
    return (until, reason) if until is not None and until > rows[0].now else None


def _limits() -> list[RateLimitItem]:
    """Return the limits in all that are counted; those of seconds are kept by webapp/delivery/throttle.py."""
    return [limit for limit in current_app.config["MAIL_LIMIT_TOTAL"] if not throttle.is_pace(limit)]


def _left() -> tuple[int, int]:
    """Return how many mails more may go now, of all kinds and of what owners get; what is being sent may arrive."""
    sending = select(func.count()).where(OutgoingEmail.status == "sending")
    in_hand = db.session.scalar(sending) or 0
    left = [(limit.amount - _sent(limit) - in_hand, kept(limit)) for limit in _limits()]
    return min((owners - kept for owners, kept in left), default=NO_LIMIT), min(
        (owners for owners, _kept in left), default=NO_LIMIT
    )


def _sent(limit: RateLimitItem) -> int:
    """Return how many were sent in the limit's time, and no more than it allows: so many are counted at most."""
    within = (
        select(OutgoingEmail.sent_at).where(was_lately(OutgoingEmail.sent_at, limit.get_expiry())).limit(limit.amount)
    )
    return db.session.scalar(select(func.count()).select_from(within.subquery())) or 0
