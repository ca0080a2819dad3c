"""Mails that nobody holds: taken back from the dead, overdue, given up, and promised anew."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

import structlog
from flask import current_app
from limits import RateLimitItem
from sqlalchemy import ColumnElement, Row, Update, and_, case, exists, func, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from webapp.accounts import users
from webapp.db.clock import MOMENT, db_now, seconds_between, was_lately
from webapp.extensions import db
from webapp.outbox import attempts, due, leases
from webapp.outbox.outgoing_email import POLICY, SERVER_FAILURE, SLOW, OutgoingEmail, unheld

log = structlog.get_logger(__name__)

# A mail that outlived this many workers is sent seldom: it may be what kills them.
POISON_EXPIRIES = 5
QUARANTINE = 3600.0

# What waits for this much longer than it can was written by a clock that was wrong.
MARGIN = 60.0

EXPIRED = "Expired"

# The class of error of a mail that an operator canceled: what its person sees is that it did not arrive.
CANCELED_BY_OPERATOR = "CanceledByOperator"

# And of one whose time was over before it was sent.
EXPIRED = "Expired"


def reap() -> int:
    """Take mails back from workers that died, and end those that nobody waits for any more; return how many."""
    expiries = OutgoingEmail.lease_expiries + 1
    reaped = db.session.execute(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "sending", OutgoingEmail.lease_until < db_now()))
        .values(
            status="queued",
            lease_token=None,
            lease_until=None,
            lease_expiries=expiries,
            next_attempt_at=case((expiries >= POISON_EXPIRIES, db_now(QUARANTINE)), else_=db_now()),
            in_doubt=True,
            last_error_class="LeaseExpired",
            last_error="the worker ended before it could write down the outcome",
        )
        .returning(OutgoingEmail.id, OutgoingEmail.lease_expiries, OutgoingEmail.locked_by),
        execution_options={"synchronize_session": False},
    ).all()
    for email_id, lease_expiries, worker in reaped:
        attempts.record(email_id, "lease_expired", worker=worker, elapsed=0, reply="the worker ended")
        tell = log.error if lease_expiries >= POISON_EXPIRIES else log.warning
        tell("lease_expired", email_id=str(email_id), lease_expiries=lease_expiries, worker=worker)
    expired = db.session.scalars(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "queued", OutgoingEmail.expires_at <= db_now()))
        .values(status="dead", finished_at=db_now(), last_error_class=EXPIRED)
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    ).all()
    for email_id in expired:
        attempts.record(email_id, "failed", worker=None, elapsed=0, reply="nobody waits for it any more")
        log.error("email_dead", email_id=str(email_id), meaning=EXPIRED)
    return len(reaped) + len(expired)


def mend_times() -> int:
    """Mend what was written while the database's clock was ahead: it counts as now. Return how many mails it was."""
    # A worker that lives has the time of a send; one that died, no more than that.
    held = _count(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "sending", OutgoingEmail.lease_until > db_now(leases.LONGEST)))
        .values(lease_until=db_now(leases.seconds()))
    )
    came_later = OutgoingEmail.created_at > db_now(MOMENT)
    waits_too_long = OutgoingEmail.next_attempt_at > db_now(_longest_wait())
    return held + _count(
        update(OutgoingEmail)
        .where(
            unheld(
                OutgoingEmail.status == "queued", OutgoingEmail.next_attempt_at > db_now(), came_later | waits_too_long
            )
        )
        .values(next_attempt_at=db_now(), created_at=case((came_later, db_now()), else_=OutgoingEmail.created_at))
    )


def _longest_wait() -> float:
    """Return for how many seconds at most a mail waits: for its mailbox, or set apart."""
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    return max([QUARANTINE, *(limit.get_expiry() for limit in limits)]) + MARGIN


def take_unhinted(
    limit: int, *, overdue: float, again_after: float, signups: bool = True
) -> Sequence[Row[uuid.UUID, int]]:
    """Return the id of due mails that had no hint lately, and how many workers each outlived; note that they get one.

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
    return db.session.execute(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(select(unhinted.c.id)))
        .values(hinted_at=db_now())
        .returning(OutgoingEmail.id, OutgoingEmail.lease_expiries),
        execution_options={"synchronize_session": False},
    ).all()


def are_due(email_ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return which of these mails wait to be sent now."""
    return set(
        db.session.scalars(
            select(OutgoingEmail.id).where(
                OutgoingEmail.id.in_(email_ids),
                OutgoingEmail.status == "queued",
                OutgoingEmail.next_attempt_at <= db_now(),
            )
        )
    )


def seconds_to_next() -> float | None:
    """Return in how many seconds the next mail is due, below 0 for an overdue one; nothing when none waits."""
    due_at = select(func.min(OutgoingEmail.next_attempt_at)).where(OutgoingEmail.status == "queued").scalar_subquery()
    row = db.session.execute(select(due_at.label("due_at"), db_now().label("now"))).one()
    return (row.due_at - row.now).total_seconds() if row.due_at else None


def revive(email_ids: Sequence[uuid.UUID]) -> int:
    """Promise dead mails anew, with the same Message-ID and all their attempts; return how many.

    One whose successor is on its way already stays dead.
    """
    return _count(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status == "dead", ~_has_successor(email_ids))
        .values(
            status="queued",
            attempts=0,
            lease_expiries=0,
            next_attempt_at=db_now(),
            finished_at=None,
            hinted_at=None,
            expires_at=case((OutgoingEmail.expires_at.is_not(None), db_now(users.PURGE_AFTER))),
        )
    )


def hurry(email_ids: Sequence[uuid.UUID]) -> int:
    """Make waiting mails due at once, with the attempts that they have left; return how many wait."""
    # One that is due already keeps its place in line.
    soon = case((OutgoingEmail.next_attempt_at > db_now(), db_now()), else_=OutgoingEmail.next_attempt_at)
    return _count(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status == "queued")
        .values(next_attempt_at=soon, hinted_at=None)
    )


def release_waiting_for_server() -> int:
    """Make due what waits for the mail server's sake, and hint all that is due; return how many mails.

    Hints that workers got meanwhile led to nothing: without this their mails would wait for the next ones.
    """
    hint_anew()
    return _count(
        update(OutgoingEmail)
        .where(
            unheld(
                OutgoingEmail.status == "queued",
                OutgoingEmail.last_error_class.in_([SERVER_FAILURE, POLICY, SLOW]),
                OutgoingEmail.next_attempt_at > db_now(),
            )
        )
        .values(next_attempt_at=db_now())
    )


def hint_anew() -> None:
    """Forget the hints that led to nothing while no mail could go: the relay gives new ones, some at a time."""
    db.session.execute(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "queued", OutgoingEmail.hinted_at.is_not(None)))
        .values(hinted_at=None),
        execution_options={"synchronize_session": False},
    )


def cancel(email_ids: Sequence[uuid.UUID]) -> int:
    """End mails that wait or are dead, since an operator says so; return how many. What is being sent goes on."""
    return _count(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status.in_(["queued", "dead"]))
        .values(
            status="canceled",
            finished_at=db_now(),
            hinted_at=None,
            last_error_class=CANCELED_BY_OPERATOR,
            last_error="canceled by an operator",
        )
    )


def _has_successor(email_ids: Sequence[uuid.UUID]) -> ColumnElement[bool]:
    """Return whether another mail keeps the same promise: on its way, or chosen too and newer."""
    twin = aliased(OutgoingEmail)
    is_newer = tuple_(twin.created_at, twin.id) > tuple_(OutgoingEmail.created_at, OutgoingEmail.id)
    return exists().where(
        twin.dedupe_key == OutgoingEmail.dedupe_key,
        twin.id != OutgoingEmail.id,
        or_(
            twin.status.in_(["queued", "sending"]),
            and_(twin.status == "dead", twin.id.in_(email_ids), is_newer),
        ),
    )


def _count(statement: Update) -> int:
    changed = db.session.execute(
        statement.returning(OutgoingEmail.id), execution_options={"synchronize_session": False}
    )
    return len(changed.all())
