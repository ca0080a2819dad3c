"""How many emails one mailbox may get. Over the limit nothing is refused: the email waits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from flask import current_app
from limits import RateLimitItem
from sqlalchemy import ColumnElement, case, func, or_, select, update

from webapp.db.base import db
from webapp.db.clock import db_now, was_lately
from webapp.db.locks import try_lock
from webapp.outbox import attempts, claims, outcomes, outgoing_email
from webapp.outbox.outgoing_email import OutgoingEmail

log = structlog.get_logger(__name__)

# The first of the emails that wait for a mailbox goes this long before the others, which it usually cancels.
HEAD_START = 5.0

# If another worker is deciding about a mailbox, its emails are due again after this.
MEANWHILE = 0.5


def admit(claimed: Sequence[OutgoingEmail]) -> list[OutgoingEmail]:
    """Return the claimed emails that may go to their mailboxes now; the others wait.

    The caller commits.
    """
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    budgets = {email.budget for email in claimed if email.budget is not None}
    if not budgets or not limits:
        return list(claimed)
    # Without the lock, two workers with an email each to one mailbox would both find room for theirs.
    locked = try_lock(f"budget:{budget}" for budget in budgets)
    busy = {budget for budget in budgets if f"budget:{budget}" not in locked}
    if busy:
        claims.release([email for email in claimed if email.budget in busy], next_attempt_at=db_now(MEANWHILE))
    admitted = [email for email in claimed if email.budget not in busy]
    for budget in _shared(budgets - busy, limits):
        rivals = [email for email in admitted if email.budget == budget]
        held = _hold_what_is_too_much(budget, rivals, limits)
        admitted = [email for email in admitted if email not in held]
    return admitted


def _shared(budgets: set[str], limits: list[RateLimitItem]) -> set[str]:
    """Return the budgets with another email that was sent recently, waits, or is being sent: usually few."""
    return set(
        db.session.scalars(
            select(OutgoingEmail.budget)
            .where(OutgoingEmail.budget.in_(budgets), _counts(limits) | (OutgoingEmail.status == "queued"))
            .group_by(OutgoingEmail.budget)
            .having(func.count() > 1)
        )
    )


def _counts(limits: list[RateLimitItem]) -> ColumnElement[bool]:
    """Return the condition for an email that counts: sent within the longest limit, or being sent."""
    longest = max(limit.get_expiry() for limit in limits)
    return or_(was_lately(OutgoingEmail.sent_at, longest), OutgoingEmail.status == "sending")


def _hold_what_is_too_much(
    budget: str, rivals: list[OutgoingEmail], limits: list[RateLimitItem]
) -> list[OutgoingEmail]:
    """Hold the claimed emails that are over their mailbox's limit, and line up all that wait for it."""
    for n, email in enumerate(rivals):
        if reached := _reached(email, limits, rivals[n:]):
            until, reason = reached
            outcomes.defer(rivals[n:], until, reason)
            _line_up(budget, until, reason)
            log.info("email_held", email_id=str(email.id), mails=len(rivals) - n, reason=reason)
            return rivals[n:]
        email.is_awaited = True
    return []


def _line_up(budget: str, until: datetime, reason: str) -> None:
    """Make all emails that wait for a mailbox wait until then, one of them to go before the others.

    That one is the newest whose link also serves whoever has waited longest.
    """
    waiting = [OutgoingEmail.budget == budget, OutgoingEmail.status == "queued"]
    oldest = db.session.scalar(select(OutgoingEmail).where(*waiting).order_by(OutgoingEmail.created_at).limit(1))
    if oldest is None:
        return
    first = db.session.scalar(
        select(OutgoingEmail.id)
        .where(*waiting, or_(OutgoingEmail.id == oldest.id, outgoing_email.serves(OutgoingEmail, oldest)))
        .order_by(OutgoingEmail.created_at.desc())
        .limit(1)
    )
    turn = case((OutgoingEmail.id == first, until), else_=until + timedelta(seconds=HEAD_START))
    was_held = OutgoingEmail.dedupe_key == outgoing_email.HELD_KEY
    # An email that is not due yet keeps its own reason to wait, and is held once it is due.
    newly = db.session.scalars(
        select(OutgoingEmail.id).where(*waiting, OutgoingEmail.next_attempt_at <= db_now(), ~was_held)
    ).all()
    in_line = was_held & (OutgoingEmail.next_attempt_at < until + timedelta(seconds=HEAD_START))
    lined_up = db.session.scalars(
        update(OutgoingEmail)
        .where(outgoing_email.unheld(*waiting, in_line | OutgoingEmail.id.in_(newly)))
        .values(next_attempt_at=turn, dedupe_key=outgoing_email.HELD_KEY)
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    )
    attempts.record(set(newly).intersection(lined_up), "held", reply=reason)


def _reached(
    email: OutgoingEmail, limits: list[RateLimitItem], undecided: Sequence[OutgoingEmail]
) -> tuple[datetime, str] | None:
    """Return until when the mailbox gets no more, and why; None if it may get this email."""
    # An email that is being sent may arrive.
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
        (
            rows[limit.amount - 1].went_at + timedelta(seconds=limit.get_expiry()),
            f"its mailbox has reached its limit, {limit}",
        )
        for limit in limits
        if len(rows) >= limit.amount
    ]
    until, reason = max(waits, default=(None, ""))
    return (until, reason) if until is not None and until > rows[0].now else None
