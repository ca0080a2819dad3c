"""Due mails that no worker was told of, and when the next one is due."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import func, or_, select, update

from webapp.db.base import db
from webapp.db.clock import db_now, seconds_between, was_lately
from webapp.outbox import due
from webapp.outbox.outgoing_email import OutgoingEmail, unheld


def take_unhinted(limit: int, *, overdue: float, again_after: float, signups: bool = True) -> Sequence[uuid.UUID]:
    """Return the ids of due mails that had no hint lately, and note that they get one.

    What was due as soon as it was promised has a hint from there: it gets one after `overdue` seconds. Without
    `signups` theirs get none.
    """
    was_delayed = seconds_between(OutgoingEmail.created_at, OutgoingEmail.next_attempt_at) > overdue
    unhinted = (
        select(OutgoingEmail.id)
        .where(
            OutgoingEmail.status == "queued",
            OutgoingEmail.next_attempt_at <= db_now(),
            or_(was_delayed, OutgoingEmail.next_attempt_at <= db_now(-overdue)),
            or_(OutgoingEmail.hinted_at.is_(None), ~was_lately(OutgoingEmail.hinted_at, again_after)),
            *due.kinds(signups=signups),
        )
        .order_by(*due.URGENT)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("unhinted")
    )
    return db.session.scalars(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(select(unhinted.c.id)))
        .values(hinted_at=db_now())
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    ).all()


def seconds_to_next() -> float | None:
    """Return in how many seconds the next mail is due, below 0 for an overdue one; nothing when none waits."""
    due_at = select(func.min(OutgoingEmail.next_attempt_at)).where(OutgoingEmail.status == "queued").scalar_subquery()
    row = db.session.execute(select(due_at.label("due_at"), db_now().label("now"))).one()
    return (row.due_at - row.now).total_seconds() if row.due_at else None


def hint_anew() -> None:
    """Forget the hints that led to nothing while no mail could go: the relay gives new ones, some at a time."""
    db.session.execute(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "queued", OutgoingEmail.hinted_at.is_not(None)))
        .values(hinted_at=None),
        execution_options={"synchronize_session": False},
    )
