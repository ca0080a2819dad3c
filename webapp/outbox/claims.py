"""A worker's hold on a mail: the lease that it takes, and the outcome that it writes while it has it."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Insert,
    Integer,
    Update,
    bindparam,
    exists,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate

from webapp.db.clock import db_now, ticks
from webapp.extensions import db, execute_at_once, table
from webapp.outbox import attempts, due, leases, outgoing_email
from webapp.outbox.attempts import Failure
from webapp.outbox.outgoing_email import OutgoingEmail, last_failure

BACKOFF_FIRST = 30.0
BACKOFF_MAX = 1800.0


class LeaseLost(Exception):
    """The mail was taken from this worker meanwhile; nothing of its outcome may be written."""


# What a claim writes of a mail besides, by column.
Fixed = dict[str, ColumnElement[Any]]


def claim(
    worker: str,
    *,
    limit: int = 1,
    email_id: uuid.UUID | None = None,
    yields: bool = False,
    order: due.Order = "urgent",
    signups: bool = True,
    fixing: Callable[[], Fixed] = dict,
) -> Sequence[OutgoingEmail]:
    """Take due mails for the time of one send each, the most urgent first; whoever gets a row sends it.

    `email_id`: this one before all others, and none when it is not due, or `yields` to what is more urgent. One that
    outlived a worker is taken alone: it may be what ended it. Nobody gets any while all mail is held back. `order`:
    "newest" takes those that came last and were never tried; without `signups` theirs wait. `fixing` returns what is
    written of each besides, the same at every call. The caller commits.
    """
    # Before the database sets the lease's end, so that ours is never the later one.
    begun, token = ticks(), uuid.uuid4()
    claimed = db.session.scalars(
        _claim(fixing, order, is_hinted=email_id is not None, yields=yields, takes_others=limit > 1, signups=signups),
        {
            "hinted": email_id,
            "others": limit - 1,
            "token": token,
            "lease": leases.seconds(),
            "worker": worker,
        },
        execution_options={"populate_existing": True, "synchronize_session": False},
    ).all()
    for email in claimed:
        email.claimed_ticks, email.claim_token = begun, token
    return sorted(claimed, key=lambda email: (email.id != email_id, email.priority, email.next_attempt_at))


@cache
def _claim(
    fixing: Callable[[], Fixed], order: due.Order, *, is_hinted: bool, yields: bool, takes_others: bool, signups: bool
) -> ReturningUpdate[OutgoingEmail]:
    """Return the statement of a claim, made once: that takes longer than executing it."""
    kinds = due.kinds(signups=signups)
    hinted = [OutgoingEmail.id == bindparam("hinted")] if is_hinted else []
    if is_hinted and yields:
        other = aliased(OutgoingEmail)
        hinted.append(
            ~exists().where(
                other.status == "queued", other.priority < OutgoingEmail.priority, other.next_attempt_at <= db_now()
            )
        )
    first = due.choice(1, order, *kinds, *hinted).cte("first")
    chosen = [select(first.c.id)]
    if takes_others:
        others = due.choice(
            bindparam("others", type_=Integer),
            order,
            OutgoingEmail.lease_expiries == 0,
            OutgoingEmail.id.not_in(select(first.c.id)),
            exists().where(first.c.lease_expiries == 0),
            *kinds,
        ).cte("others")
        chosen.append(select(others.c.id))
    return (
        update(OutgoingEmail)
        .where(OutgoingEmail.id.in_(union_all(*chosen)), OutgoingEmail.status == "queued")
        .values(
            status="sending",
            lease_token=bindparam("token"),
            lease_until=db_now(bindparam("lease")),
            locked_by=bindparam("worker"),
            **fixing(),
        )
        .returning(OutgoingEmail)
    )


def renew(claimed: Sequence[OutgoingEmail]) -> None:
    """Give claimed mails the time of a whole send again, those that this worker still holds. Commits."""
    begun = ticks()
    renewed = db.session.scalars(
        update(OutgoingEmail)
        .where(*_held(claimed))
        .values(lease_until=db_now(leases.seconds()))
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    ).all()
    db.session.commit()
    for email in claimed:
        # What was lost stays so: its lease has ended, or its token is not ours.
        if email.id in renewed:
            email.claimed_ticks = begun


def let_go(claimed: Sequence[OutgoingEmail]) -> None:
    """Give claimed mails back that were not tried, those that this worker still holds. Commits."""
    _free(claimed)
    db.session.commit()


def _free(claimed: Sequence[OutgoingEmail], **values: Any) -> None:
    if claimed:
        db.session.execute(
            update(OutgoingEmail)
            .where(*_held(claimed))
            .values(status="queued", lease_token=None, lease_until=None, locked_by=None, hinted_at=None, **values),
            execution_options={"synchronize_session": False},
        )


def _held(claimed: Sequence[OutgoingEmail]) -> list[ColumnElement[bool]]:
    """Return what is true of the rows of these mails, which were claimed together, while nobody took them."""
    return [
        OutgoingEmail.id.in_([email.id for email in claimed]),
        OutgoingEmail.status == "sending",
        OutgoingEmail.lease_token == claimed[0].claim_token,
    ]


# What `settle` writes of a mail, made once: that takes longer than the database does.
SETTLED = (
    update(table(OutgoingEmail))
    .where(
        OutgoingEmail.id == bindparam("mail"),
        OutgoingEmail.status == "sending",
        OutgoingEmail.lease_token == bindparam("held_by"),
    )
    .values(
        status="sent",
        attempts=OutgoingEmail.attempts + 1,
        sent_at=db_now(),
        finished_at=db_now(),
        in_doubt=False,
        last_error_class=None,
        last_error=None,
        last_smtp_code=250,
        lease_token=None,
        lease_until=None,
        locked_by=None,
        hinted_at=None,
    )
    .returning(OutgoingEmail.id)
)


def settle(email: OutgoingEmail, reply: str, also: tuple[Update, ...] = (), **parameters: Any) -> None:
    """Write down that the server took the mail, and what follows from that. Commits; the caller has nothing open.

    Raises LeaseLost, as all that end a claim, and writes nothing then.
    """
    tried = attempts.entry(
        email.id, "sent", worker=email.locked_by, elapsed=leases.held_for(email), phase="dot", code=250, reply=reply
    )
    all_of_it: tuple[Update | Insert, ...] = (SETTLED, attempts.ENTRY, *also)
    if not execute_at_once(all_of_it, {"held_by": email.claim_token, **tried, **parameters}):
        raise LeaseLost(str(email.id))


def postpone(email: OutgoingEmail, failure: Failure, *, delay: float | None = None, in_doubt: bool = False) -> None:
    """Spend an attempt, and try again after the backoff, or so many seconds; the last one ends the mail."""
    if email.attempts + 1 >= email.max_attempts:
        bury(email, failure)
        return
    _release(
        email,
        "deferred",
        failure,
        status="queued",
        attempts=OutgoingEmail.attempts + 1,
        next_attempt_at=db_now(backoff(email.attempts) if delay is None else delay),
        in_doubt=OutgoingEmail.in_doubt | in_doubt,
        **last_failure(failure),
    )


def give_back(email: OutgoingEmail, failure: Failure, *, delay: float = 0, in_doubt: bool = False) -> None:
    """Spend no attempt: it was not the mail's fault. Due in `delay` seconds, or when the breaker closes."""
    _release(
        email,
        "returned",
        failure,
        status="queued",
        next_attempt_at=db_now(delay),
        in_doubt=OutgoingEmail.in_doubt | in_doubt,
        **last_failure(failure),
    )


def bury(email: OutgoingEmail, failure: Failure, *, in_doubt: bool = False) -> None:
    """Give the mail up, with its reason, until an operator revives it."""
    email.is_buried = True
    _release(
        email,
        "failed",
        failure,
        status="dead",
        attempts=OutgoingEmail.attempts + 1,
        finished_at=db_now(),
        in_doubt=OutgoingEmail.in_doubt | in_doubt,
        **last_failure(failure),
    )


def hold(held: Sequence[OutgoingEmail], until: datetime, reason: str) -> None:
    """Let mails that were claimed together wait, since their mailbox got enough for now. They spend no attempt.

    Their keys are free for the next ones: whoever asks again must not find out that they wait.
    """
    _free(held, next_attempt_at=until, dedupe_key=outgoing_email.HELD_KEY)
    attempts.record_held((email.id for email in held), reason)


def let_wait(held: Sequence[OutgoingEmail], seconds: float) -> None:
    """Give claimed mails back for a moment."""
    _free(held, next_attempt_at=db_now(seconds))


def drop(email: OutgoingEmail, reason: str, error_class: str = "Canceled") -> None:
    """Cancel a claimed mail that nobody needs any more."""
    _release(
        email,
        "canceled",
        Failure(error_class, reason),
        status="canceled",
        finished_at=db_now(),
        last_error_class=error_class,
        last_error=reason,
    )


def backoff(spent: int) -> float:
    """Return seconds until the next try after so many attempts: doubling, at most half an hour, spread by a third."""
    longest: float = min(BACKOFF_MAX, BACKOFF_FIRST * 2.0**spent)
    return longest * random.uniform(0.67, 1)  # noqa: S311 - no secret  # nosec B311


def _release(email: OutgoingEmail, outcome: str, failure: Failure, **values: Any) -> None:
    """End this worker's hold on the mail, unless it was lost. Raises LeaseLost."""
    # Not by the ORM's unit of work: the token decides, not what this process believes.
    released = db.session.execute(
        update(OutgoingEmail)
        .where(*_held([email]))
        .values(lease_token=None, lease_until=None, locked_by=None, hinted_at=None, **values)
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    )
    if released.first() is None:
        raise LeaseLost(str(email.id))
    attempts.record(
        email.id,
        outcome,
        worker=email.locked_by,
        elapsed=leases.held_for(email),
        phase=failure.phase,
        code=failure.code,
        reply=failure.text,
    )
