"""Which mails wait for nothing but a worker, and which of them goes first."""

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

# A mail that somebody is free for is taken sooner than this.
OVERDUE = 0.5


def choice(limit: int | BindParameter[int], order: Order, *conditions: ColumnElement[bool]) -> Select[uuid.UUID, int]:
    """Return the choice of due mails that nobody else chooses at this moment.

    To be used as a CTE, since Postgres may run a plain subquery again for each row, past its limit.
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
    """Return whether a mail waits for nothing but a worker, since so many seconds."""
    return and_(
        OutgoingEmail.status == "queued",
        OutgoingEmail.next_attempt_at <= db_now(-by),
        or_(OutgoingEmail.expires_at.is_(None), OutgoingEmail.expires_at > db_now()),
    )


def are_overdue(*, signups: bool) -> bool:
    """Return whether mails that may go wait though they are due: then nobody is free to take them. Commits."""
    found = db.session.scalar(select(exists().where(is_due(OVERDUE), ~pause.condition(), *kinds(signups=signups))))
    db.session.commit()
    return bool(found)


def to_hint(limit: int, *, overdue: float, signups: bool) -> Sequence[uuid.UUID]:
    """Return due mails for which workers are to be woken up, the most urgent first.

    What was due as soon as it was promised has a hint from there: it is left alone for `overdue` seconds.
    """
    was_delayed = seconds_between(OutgoingEmail.created_at, OutgoingEmail.next_attempt_at) > overdue
    return db.session.scalars(
        select(OutgoingEmail.id)
        .where(is_due(), or_(was_delayed, OutgoingEmail.next_attempt_at <= db_now(-overdue)), *kinds(signups=signups))
        .order_by(*URGENT)
        .limit(limit)
    ).all()


def seconds_to_next() -> float | None:
    """Return in how many seconds the next mail is due, below 0 for an overdue one; nothing when none waits."""
    due_at = select(func.min(OutgoingEmail.next_attempt_at)).where(OutgoingEmail.status == "queued").scalar_subquery()
    row = db.session.execute(select(due_at.label("due_at"), db_now().label("now"))).one()
    return (row.due_at - row.now).total_seconds() if row.due_at else None


def kinds(*, signups: bool) -> list[ColumnElement[bool]]:
    """Return which mails may go at all: without `signups` theirs wait."""
    return [] if signups else [~outgoing_email.is_signup()]
