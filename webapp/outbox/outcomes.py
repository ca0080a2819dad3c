"""The outcome of a try, written by whoever holds the mail's lease."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Insert, Update, Uuid, bindparam, literal, select, update

from webapp.db.base import db, table
from webapp.db.clock import db_now
from webapp.db.statements import execute_at_once
from webapp.outbox import attempts, leases, outgoing_email
from webapp.outbox.attempts import Failure
from webapp.outbox.backoff import backoff
from webapp.outbox.claims import LeaseLost, free, still_held
from webapp.outbox.outgoing_email import SUPERSEDED, OutgoingEmail, last_failure, serves

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
    free(held, next_attempt_at=until, dedupe_key=outgoing_email.HELD_KEY)
    attempts.record_held((email.id for email in held), reason)


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


def _release(email: OutgoingEmail, outcome: str, failure: Failure, **values: Any) -> None:
    """End this worker's hold on the mail, unless it was lost. Raises LeaseLost."""
    # Not by the ORM's unit of work: the token decides, not what this process believes.
    released = db.session.execute(
        update(OutgoingEmail)
        .where(*still_held([email]))
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
            serves(sent.c, older.c),
        )
        .with_for_update(skip_locked=True, of=older)
    )
    return (
        update(table(OutgoingEmail))
        .where(table(OutgoingEmail).c.id.in_(free))
        .values(
            status="canceled",
            finished_at=db_now(),
            last_error_class=literal(SUPERSEDED),
            last_error=literal("a newer mail to its address was sent"),
        )
    )


# What a mail that was sent ends, made once.
ENDED = _ended()
