"""Which emails wait only for a worker, and which of them goes first."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import BindParameter, ColumnElement, Select, and_, exists, func, or_, select

from webapp.db.base import db
from webapp.db.clock import db_now, seconds_between
from webapp.outbox import outgoing_email, pause
from webapp.outbox.outgoing_email import OutgoingEmail

Order = Literal["urgent", "newest"]

URGENT = (OutgoingEmail.priority, OutgoingEmail.next_attempt_at)

# While a worker is free, an email is claimed sooner than this.
OVERDUE = 0.5


def choice(limit: int | BindParameter[int], order: Order, *conditions: ColumnElement[bool]) -> Select[uuid.UUID, int]:
    """Select due emails that nobody else is choosing at this moment.

    Use it as a CTE: Postgres may run a plain subquery again for each row, and exceed its limit.
    """
    newest = [OutgoingEmail.last_error_class.is_(None)] if order == "newest" else []
    return (
        select(OutgoingEmail.id, OutgoingEmail.lease_expiries)
        .where(is_due(), ~pause.condition(), *newest, *conditions)
        .order_by(*([OutgoingEmail.next_attempt_at.desc()] if newest else URGENT))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )


def is_due(by: float = 0) -> ColumnElement[bool]:
    """Return whether an email has been waiting only for a worker, for at least `by` seconds."""
    return and_(
        OutgoingEmail.status == "queued",
        OutgoingEmail.next_attempt_at <= db_now(-by),
        or_(OutgoingEmail.expires_at.is_(None), OutgoingEmail.expires_at > db_now()),
    )


def are_overdue(by: float, *, signups: bool) -> bool:
    """Return whether emails have been due for `by` seconds; without `signups`, theirs do not count."""
    return db.session.scalar(select(exists().where(is_due(by), ~pause.condition(), *kinds(signups=signups)))) or False


def to_hint(limit: int, *, overdue: float, signups: bool) -> Sequence[uuid.UUID]:
    """Return due emails to wake workers for, the most urgent first.

    An email that was due when it was promised already has a hint: it is left alone for `overdue` seconds.
    """
    was_delayed = seconds_between(OutgoingEmail.created_at, OutgoingEmail.next_attempt_at) > overdue
    return db.session.scalars(
        select(OutgoingEmail.id)
        .where(is_due(), or_(was_delayed, OutgoingEmail.next_attempt_at <= db_now(-overdue)), *kinds(signups=signups))
        .order_by(*URGENT)
        .limit(limit)
    ).all()


def seconds_to_next() -> float | None:
    """Return in how many seconds the next email is due, below 0 if it is overdue; None if none waits."""
    due_at = select(func.min(OutgoingEmail.next_attempt_at)).where(OutgoingEmail.status == "queued").scalar_subquery()
    row = db.session.execute(select(due_at.label("due_at"), db_now().label("now"))).one()
    return (row.due_at - row.now).total_seconds() if row.due_at else None


def kinds(*, signups: bool) -> list[ColumnElement[bool]]:
    """Return the conditions for emails that may be sent at all: without `signups`, theirs wait."""
    return [] if signups else [~outgoing_email.is_signup()]
