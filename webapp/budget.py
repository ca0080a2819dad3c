"""How many mails may go to one address, and in all. Over that nothing is refused: the mail waits."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from flask import current_app
from limits import RateLimitItem
from sqlalchemy import ColumnElement, exists, func, or_, select, update
from sqlalchemy.orm import aliased

from webapp import claims, outbox
from webapp.clock import db_now
from webapp.extensions import db, lock
from webapp.outbox import OutgoingEmail

log = structlog.get_logger(__name__)

# The class of error of a mail that made way for a newer one to its address.
SUPERSEDED = "Superseded"
NEWER = "a newer mail to its address waits"

# Counting all mails takes longer than sending one does, so a process counts once in a while.
COUNT_AGAIN_SECONDS = 1.0


def admit(claimed: Sequence[OutgoingEmail]) -> list[OutgoingEmail]:
    """Return the claimed mails that may go to their addresses now; others wait, or make way for newer ones.

    The caller commits.
    """
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    budgets = {email.budget for email in claimed if email.budget is not None}
    if not budgets or not limits:
        return list(claimed)
    # Two workers with a mail each to one address would both find that it may go.
    lock(*(f"budget:{budget}" for budget in budgets))
    used = _used(budgets, limits)
    # Those after it in the batch are decided about when it is their turn.
    return [email for n, email in enumerate(claimed) if email.budget not in used or _admit(email, limits, claimed[n:])]


def _used(budgets: set[str], limits: list[RateLimitItem]) -> set[str]:
    """Return the budgets that had another mail lately, or have another in a worker's hands: few of them, mostly."""
    return set(
        db.session.scalars(
            select(OutgoingEmail.budget)
            .where(OutgoingEmail.budget.in_(budgets), _counts(limits))
            .group_by(OutgoingEmail.budget)
            .having(func.count() > 1)
        )
    )


def _counts(limits: list[RateLimitItem]) -> ColumnElement[bool]:
    """Return what is true of a mail that counts: it was sent within the longest limit, or is in a worker's hands."""
    longest = max(limit.get_expiry() for limit in limits)
    return or_(OutgoingEmail.sent_at > db_now(-longest), OutgoingEmail.status == "sending")


def _admit(email: OutgoingEmail, limits: list[RateLimitItem], undecided: Sequence[OutgoingEmail]) -> bool:
    reached = _reached(email, limits, undecided)
    if reached is None:
        return True
    until, reason = reached
    if _is_newest(email):
        claims.hold(email, until, reason)
        _supersede_before(email)
    else:
        claims.drop(email, NEWER, SUPERSEDED)
    log.info("email_held", email_id=str(email.id), reason=reason)
    return False


def cancel(verify_email_id: uuid.UUID, reason: str) -> None:
    """Cancel a verification's mail that still waits, and let the one that made way for it wait again."""
    for budget in outbox.cancel(verify_email_id, reason):
        _let_former_wait_again(budget)


def drop(email: OutgoingEmail, reason: str) -> None:
    """Cancel a claimed mail that nobody needs any more, and let the one that made way for it wait again."""
    claims.drop(email, reason)
    if email.budget:
        _let_former_wait_again(email.budget)


def spent() -> str | None:
    """Return which limit of mails in all is reached, if any; this process counts them once a second."""
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_TOTAL"]
    total: Total = current_app.extensions.setdefault("mail_total", Total())
    with total.lock:
        if time.monotonic() >= total.count_at:
            total.count_at = time.monotonic() + COUNT_AGAIN_SECONDS
            spent = next((str(limit) for limit in limits if _has_sent(limit)), None)
            if spent and not total.spent:
                log.error("mail_limit_reached", limit=spent)
            elif total.spent and not spent:
                log.info("mail_limit_over", limit=total.spent)
            total.spent = spent
        return total.spent


class Total:
    """What this process knows of all mails: which limit is reached, if any, and when to count again."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count_at = 0.0
        self.spent: str | None = None


def _reached(
    email: OutgoingEmail, limits: list[RateLimitItem], undecided: Sequence[OutgoingEmail]
) -> tuple[datetime, str] | None:
    """Return until when the address gets no more, and why; nothing when it may get this mail."""
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
        (rows[limit.amount - 1].went_at + timedelta(seconds=limit.get_expiry()), f"its address got {limit}")
        for limit in limits
        if len(rows) >= limit.amount
    ]
    until, reason = max(waits, default=(None, ""))
    return (until, reason) if until is not None and until > rows[0].now else None


def _is_newest(email: OutgoingEmail) -> bool:
    newer = exists().where(
        OutgoingEmail.budget == email.budget,
        OutgoingEmail.status == "queued",
        OutgoingEmail.id != email.id,
        OutgoingEmail.created_at >= email.created_at,
    )
    return not db.session.scalar(select(newer))


def _supersede_before(email: OutgoingEmail) -> None:
    """Cancel the waiting mails that this one makes needless: it goes to the same address, and their links serve it."""
    older = (
        select(OutgoingEmail.id)
        .where(
            OutgoingEmail.budget == email.budget,
            OutgoingEmail.status == "queued",
            OutgoingEmail.created_at <= email.created_at,
            OutgoingEmail.id != email.id,
        )
        # Whoever claims one at this moment waits for us to decide about this one, and then finds it.
        .with_for_update(skip_locked=True)
        .cte("older")
    )
    db.session.execute(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(select(older.c.id)))
        .values(
            status="canceled",
            finished_at=db_now(),
            last_error_class=SUPERSEDED,
            last_error=NEWER,
        ),
        execution_options={"synchronize_session": False},
    )


def _let_former_wait_again(budget: str) -> None:
    """Promise again what made way for a mail that is not sent now: else whoever cancels his would cancel both.

    What made way for one that was sent is served by that one's link.
    """
    # Else one might make way just now for the mail that is canceled here.
    lock(f"budget:{budget}")
    other = aliased(OutgoingEmail)
    serves = or_(other.status.in_(["queued", "sending"]), other.sent_at > OutgoingEmail.finished_at)
    former = (
        select(OutgoingEmail.id)
        .where(
            OutgoingEmail.budget == budget,
            OutgoingEmail.status == "canceled",
            OutgoingEmail.last_error_class == SUPERSEDED,
            ~exists().where(other.budget == budget, serves),
        )
        .order_by(OutgoingEmail.created_at.desc())
        .limit(1)
        .cte("former")
    )
    db.session.execute(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(select(former.c.id)))
        .values(
            status="queued",
            next_attempt_at=db_now(),
            hinted_at=None,
            finished_at=None,
            last_error_class=None,
            last_error=None,
        ),
        execution_options={"synchronize_session": False},
    )


def _has_sent(limit: RateLimitItem) -> bool:
    """Return whether so many were sent in the limit's time; the last of them is looked for, not all counted."""
    last = (
        select(OutgoingEmail.id)
        .where(OutgoingEmail.sent_at > db_now(-limit.get_expiry()))
        .order_by(OutgoingEmail.sent_at.desc())
        .offset(limit.amount - 1)
        .limit(1)
    )
    return db.session.scalar(last) is not None
