"""Transitions of emails that no worker holds: revived, made due, and canceled."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Update, and_, case, exists, or_, tuple_, update
from sqlalchemy.orm import aliased

from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import kinds
from webapp.outbox.outgoing_email import POLICY, SERVER_FAILURE, SLOW, OutgoingEmail, unheld

# The error class of an email that an operator canceled: its person sees that it did not arrive.
CANCELED_BY_OPERATOR = "CanceledByOperator"


def revive(email_ids: Sequence[uuid.UUID]) -> int:
    """Promise dead emails again, with the same Message-ID and all their attempts back; return how many.

    One whose successor is already on its way stays dead.
    """
    return count_changed(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status == "dead", ~_has_successor(email_ids))
        .values(
            status="queued",
            attempts=0,
            lease_expiries=0,
            next_attempt_at=db_now(),
            finished_at=None,
            expires_at=case((OutgoingEmail.expires_at.is_not(None), db_now(kinds.PURGE_AFTER))),
        )
    )


def hurry(email_ids: Sequence[uuid.UUID]) -> int:
    """Make waiting emails due at once, with the attempts that they have left; return how many wait."""
    # One that is due already keeps its place in line.
    soon = case((OutgoingEmail.next_attempt_at > db_now(), db_now()), else_=OutgoingEmail.next_attempt_at)
    return count_changed(
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status == "queued")
        .values(next_attempt_at=soon)
    )


def release_waiting_for_server() -> int:
    """Make due the emails that wait because of the mail server; return how many."""
    return count_changed(
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


def cancel(
    *which: ColumnElement[bool], reason: str, error_class: str = "Canceled", statuses: Sequence[str] = ("queued",)
) -> int:
    """Cancel the emails that meet the conditions and whose rows are not locked; return how many.

    Emails being sent are not stopped. The caller commits.
    """
    return count_changed(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status.in_(statuses), *which))
        .values(status="canceled", finished_at=db_now(), last_error_class=error_class, last_error=reason)
    )


def _has_successor(email_ids: Sequence[uuid.UUID]) -> ColumnElement[bool]:
    """Return whether another email keeps the same promise: one on its way, or a newer one that is chosen too."""
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


def count_changed(statement: Update) -> int:
    changed = db.session.execute(
        statement.returning(OutgoingEmail.id), execution_options={"synchronize_session": False}
    )
    return len(changed.all())
