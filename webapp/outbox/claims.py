"""A worker's hold on an email: the lease that it takes, renews and gives back."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Integer, bindparam, exists, select, union_all, update
from sqlalchemy.sql.dml import ReturningUpdate

from webapp.db.base import db
from webapp.db.clock import db_now, ticks
from webapp.outbox import due, leases
from webapp.outbox.outgoing_email import OutgoingEmail


class LeaseLost(Exception):
    """This worker no longer holds the email, and must not write its outcome."""


# Other columns that a claim sets, by name.
ExtraValues = dict[str, ColumnElement[Any]]


def claim(
    worker: str,
    *,
    limit: int = 1,
    order: due.Order = "urgent",
    signups: bool = True,
    extra_values: Callable[[], ExtraValues] = dict,
) -> Sequence[OutgoingEmail]:
    """Lease due emails for the time of one send each, in the order to send them; whoever gets a row sends it.

    An email that outlived a worker is claimed alone, since it may be what killed it. While all email is paused, nothing
    is claimed. `order`: "newest" claims the latest that never failed, the last one first. Without `signups`, theirs
    wait. `extra_values` returns the other columns to set, the same at every call. The caller commits.
    """
    # Taken before the database sets the lease's end, so that ours never ends later.
    begun, token = ticks(), uuid.uuid4()
    claimed = db.session.scalars(
        _claim(extra_values, order, signups=signups),
        {"others": limit - 1, "token": token, "lease": leases.seconds(), "worker": worker},
        execution_options={"populate_existing": True, "synchronize_session": False},
    ).all()
    for email in claimed:
        email.claimed_ticks = email.begun_ticks = begun
        email.claim_token = token
    if order == "newest":
        return sorted(claimed, key=lambda email: email.next_attempt_at, reverse=True)
    return sorted(claimed, key=lambda email: (email.priority, email.next_attempt_at))


@cache
def _claim(
    extra_values: Callable[[], ExtraValues], order: due.Order, *, signups: bool
) -> ReturningUpdate[OutgoingEmail]:
    """Return the claim's statement, built once: building it takes longer than executing it."""
    kinds = due.kinds(signups=signups)
    first = due.choice(1, order, *kinds).cte("first")
    others = due.choice(
        bindparam("others", type_=Integer),
        order,
        OutgoingEmail.lease_expiries == 0,
        OutgoingEmail.id.not_in(select(first.c.id)),
        exists().where(first.c.lease_expiries == 0),
        *kinds,
    ).cte("others")
    chosen = union_all(select(first.c.id), select(others.c.id))
    return (
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(chosen), OutgoingEmail.status == "queued")
        .values(
            status="sending",
            lease_token=bindparam("token"),
            lease_until=db_now(bindparam("lease")),
            locked_by=bindparam("worker"),
            **extra_values(),
        )
        .returning(OutgoingEmail)
    )


def renew(claimed: Sequence[OutgoingEmail]) -> None:
    """Give those claimed emails that this worker still holds the time of a whole send again. Commits."""
    begun = ticks()
    renewed = _change(claimed, lease_until=db_now(leases.seconds()))
    db.session.commit()
    for email in claimed:
        # A lost email stays lost: its lease has ended, or its token is not ours.
        if email.id in renewed:
            email.claimed_ticks = begun


def release(claimed: Sequence[OutgoingEmail], *, status: str = "queued", **values: Any) -> Sequence[uuid.UUID]:
    """End this worker's hold on emails that were claimed together; return the ids of those that it still held."""
    return _change(claimed, status=status, lease_token=None, lease_until=None, locked_by=None, **values)


def _change(claimed: Sequence[OutgoingEmail], **values: Any) -> Sequence[uuid.UUID]:
    # Not through the ORM's unit of work: the token decides, not what this process believes.
    return db.session.scalars(
        update(OutgoingEmail)
        .where(
            OutgoingEmail.id.in_([email.id for email in claimed]),
            OutgoingEmail.status == "sending",
            OutgoingEmail.lease_token == claimed[0].claim_token,
        )
        .values(**values)
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    ).all()
