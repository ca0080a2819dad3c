"""The outcome of an attempt, written by whoever holds the email's lease."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import exists, select, text, update
from sqlalchemy.orm import aliased

from webapp.db.base import db, execute_alone
from webapp.db.clock import db_now
from webapp.outbox import attempts, claims, leases, outgoing_email, transitions
from webapp.outbox.attempts import Failure
from webapp.outbox.backoff import backoff
from webapp.outbox.claims import LeaseLost
from webapp.outbox.kinds import PURGE_AFTER
from webapp.outbox.outgoing_email import SUPERSEDED, OutgoingEmail, serves

SUPERSEDED_BY = "a newer email to its address was sent"

# What `settle` writes, in one round trip on Postgres. `verify_email_id`: of the link that the email carried, or NULL.
# It never waits for a lock on the user's row: an email that was sent but could not be recorded would be sent again.
SETTLE = text("""
    WITH settled AS (
        UPDATE outgoing_emails
        SET status = 'sent', attempts = attempts + 1, last_smtp_code = 250,
            sent_at = statement_timestamp(), finished_at = statement_timestamp(),
            in_doubt = false, last_error_class = NULL, last_error = NULL,
            lease_token = NULL, lease_until = NULL, locked_by = NULL
        WHERE id = :id AND status = 'sending' AND lease_token = :lease_token
        RETURNING id, user_id, budget, to_address, created_at
    ), attempt AS (
        INSERT INTO delivery_attempts (email_id, started_at, finished_at, outcome, phase, code, reply, worker)
        SELECT id, statement_timestamp() - make_interval(secs => :elapsed), statement_timestamp(),
            'sent', 'dot', 250, :reply, :worker
        FROM settled
    ), link AS (
        UPDATE verify_emails
        SET expires_at = statement_timestamp() + make_interval(secs => :link_lives),
            code_expires_at = statement_timestamp() + make_interval(secs => :code_lives)
        FROM settled WHERE verify_emails.id = :verify_email_id
        RETURNING verify_emails.user_id
    ), person AS (
        UPDATE users SET purge_at = statement_timestamp() + make_interval(secs => :purge_after)
        WHERE id IN (
            SELECT users.id FROM users, link WHERE users.id = link.user_id AND users.purge_at IS NOT NULL
            FOR NO KEY UPDATE OF users SKIP LOCKED
        )
    ), superseded AS (
        UPDATE outgoing_emails
        SET status = 'canceled', finished_at = statement_timestamp(),
            last_error_class = :error_class, last_error = :error
        WHERE :is_awaited AND id IN (
            SELECT older.id FROM outgoing_emails AS older, settled
            WHERE older.status = 'queued' AND older.id <> settled.id AND older.created_at <= settled.created_at
                AND older.budget = settled.budget AND lower(older.to_address) = lower(settled.to_address)
                AND (settled.budget LIKE 'signup:%' OR settled.budget LIKE 'reset:%' OR settled.user_id = older.user_id)
            FOR UPDATE OF older SKIP LOCKED
        )
    )
    SELECT id FROM settled
""")


def settle(email: OutgoingEmail, reply: str, *, link_lives: float | None = None, code_lives: float = 0) -> None:
    """Record that the server took the email, and what follows from that. Commits; the caller has no transaction open.

    `link_lives`, `code_lives`: seconds from now until the link and the code expire. Raises LeaseLost, like everything
    that ends a claim, and then writes nothing.
    """
    if db.engine.dialect.name == "sqlite":
        _settle_step_by_step(email, reply, link_lives, code_lives)
        return
    values = {
        "id": email.id,
        "lease_token": email.claim_token,
        "elapsed": leases.tried_for(email),
        "reply": attempts.redact(reply),
        "worker": email.locked_by,
        "verify_email_id": None if link_lives is None else email.verify_email_id,
        "link_lives": link_lives,
        "code_lives": code_lives,
        "purge_after": PURGE_AFTER,
        "is_awaited": email.is_awaited,
        "error_class": SUPERSEDED,
        "error": SUPERSEDED_BY,
    }
    if execute_alone(SETTLE, values) is None:
        raise LeaseLost(str(email.id))


def _settle_step_by_step(email: OutgoingEmail, reply: str, link_lives: float | None, code_lives: float) -> None:
    """Do what SETTLE does: in SQLite a statement writes to only one table, and none costs a round trip."""
    _end(
        email,
        "sent",
        phase="dot",
        code=250,
        reply=reply,
        status="sent",
        attempts=OutgoingEmail.attempts + 1,
        sent_at=db_now(),
        finished_at=db_now(),
        in_doubt=False,
        last_error_class=None,
        last_error=None,
        last_smtp_code=250,
    )
    if link_lives is not None:
        links, users = (db.metadata.tables[name] for name in ("verify_emails", "users"))
        lives = {"expires_at": db_now(link_lives), "code_expires_at": db_now(code_lives)}
        db.session.execute(update(links).where(links.c.id == email.verify_email_id).values(lives))
        owner = select(links.c.user_id).where(links.c.id == email.verify_email_id).scalar_subquery()
        its_person = update(users).where(users.c.id == owner, users.c.purge_at.is_not(None))
        db.session.execute(its_person.values(purge_at=db_now(PURGE_AFTER)))
    if email.is_awaited:
        sent = aliased(OutgoingEmail)
        is_older = exists().where(sent.id == email.id, OutgoingEmail.created_at <= sent.created_at)
        others = OutgoingEmail.id != email.id
        transitions.cancel(
            others, is_older.where(serves(sent, OutgoingEmail)), reason=SUPERSEDED_BY, error_class=SUPERSEDED
        )
    db.session.commit()


def postpone(email: OutgoingEmail, failure: Failure, *, delay: float | None = None, in_doubt: bool = False) -> None:
    """Spend an attempt, and retry after the backoff or `delay` seconds; after the last attempt, bury the email."""
    if email.attempts + 1 >= email.max_attempts:
        bury(email, failure)
        return
    _fail(
        email,
        "deferred",
        failure,
        in_doubt=in_doubt,
        status="queued",
        attempts=OutgoingEmail.attempts + 1,
        next_attempt_at=db_now(backoff(email.attempts) if delay is None else delay),
    )


def requeue(email: OutgoingEmail, failure: Failure, *, delay: float = 0, in_doubt: bool = False) -> None:
    """Spend no attempt: it was not the email's fault. Due in `delay` seconds, or when the breaker closes."""
    _fail(email, "returned", failure, in_doubt=in_doubt, status="queued", next_attempt_at=db_now(delay))


def bury(email: OutgoingEmail, failure: Failure, *, in_doubt: bool = False) -> None:
    """Give up on the email, with the reason, until an operator revives it."""
    email.is_buried = True
    _fail(
        email,
        "failed",
        failure,
        in_doubt=in_doubt,
        status="dead",
        attempts=OutgoingEmail.attempts + 1,
        finished_at=db_now(),
    )


def defer(held: Sequence[OutgoingEmail], until: datetime, reason: str) -> None:
    """Make emails that were claimed together wait, since their mailbox got enough for now. They spend no attempt.

    Their dedupe keys become free for new emails: whoever asks again must not find out that these are waiting.
    """
    claims.release(held, next_attempt_at=until, dedupe_key=outgoing_email.HELD_KEY)
    attempts.record([email.id for email in held], "held", reply=reason)


def cancel(email: OutgoingEmail, reason: str) -> None:
    """Cancel a claimed email that nobody needs any more."""
    _end(
        email,
        "canceled",
        reply=reason,
        status="canceled",
        finished_at=db_now(),
        last_error_class="Canceled",
        last_error=reason,
    )


def _fail(email: OutgoingEmail, outcome: str, failure: Failure, *, in_doubt: bool, **values: Any) -> None:
    _end(
        email,
        outcome,
        phase=failure.phase,
        code=failure.code,
        reply=failure.text,
        in_doubt=OutgoingEmail.in_doubt | in_doubt,
        last_error_class=failure.error_class[: outgoing_email.ERROR_CLASS_MAX],
        last_smtp_code=failure.code,
        last_error=attempts.redact(failure.text),
        **values,
    )


def _end(
    email: OutgoingEmail, outcome: str, *, phase: str | None = None, code: int | None = None, reply: str, **values: Any
) -> None:
    """End this worker's hold on the email, and record the attempt. Raises LeaseLost if it had lost the email."""
    if not claims.release([email], **values):
        raise LeaseLost(str(email.id))
    elapsed = leases.tried_for(email)
    attempts.record([email.id], outcome, worker=email.locked_by, elapsed=elapsed, phase=phase, code=code, reply=reply)
