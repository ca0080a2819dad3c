"""Promising a mail, as part of the caller's transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import Table, insert
from sqlalchemy.dialects import postgresql, sqlite

from webapp.db.base import db, table
from webapp.db.clock import db_now
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp import addresses

log = structlog.get_logger(__name__)

# The smaller goes first: what owners ask for, then signups, the first of each network before the second of any.
VERIFICATION_PRIORITY = 0
SIGNUP_PRIORITY = 1
LAST_SIGNUP_PRIORITY = 9
NOTICE_PRIORITY = 10

INSERT: Mapping[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def post(**promise: Any) -> uuid.UUID | None:
    """Promise a mail, as add() does, unless one with its key waits already: its promise serves both."""
    # What it refers to may be new.
    db.session.flush()
    email_id, times, row = _promise(**promise)
    # No savepoint: a full SQLite would lose it, and the reason with it.
    insert_into = INSERT[db.engine.dialect.name]
    statement = insert_into(table(OutgoingEmail)).values(times).on_conflict_do_nothing()
    return email_id if db.session.scalar(statement.returning(table(OutgoingEmail).c.id), row) else None


def add(**promise: Any) -> uuid.UUID:
    """Add a mail, as part of the caller's transaction, and return its id; `promise` is what _promise() takes."""
    email_id, times, row = _promise(**promise)
    db.session.execute(insert(table(OutgoingEmail)).values(times), row)
    return email_id


def _promise(
    *,
    to_address: str,
    user_id: int | None,
    dedupe_key: str,
    budget: str | None = None,
    verify_email_id: uuid.UUID | None = None,
    template: str | None = None,
    locale: str | None = None,
    facts: dict[str, Any] | None = None,
    priority: int = NOTICE_PRIORITY,
    max_attempts: int | None = None,
    delay: float = 0,
    expires_in: float | None = None,
) -> tuple[uuid.UUID, dict[str, Any], dict[str, Any]]:
    """Return the id of a mail that is due in `delay` seconds, the database's times in its row, and the rest of it.

    Without `template` the first claim chooses one. One of one's own is a folder in instance/templates/mail/, knows
    its `facts` (of which JSON can be made) by their names, and is canceled when its user is gone.
    """
    email_id = uuid.uuid4()
    promise = {
        "id": email_id,
        "dedupe_key": dedupe_key,
        "user_id": user_id,
        "verify_email_id": verify_email_id,
        "template": template,
        "locale": locale,
        "to_address": to_address,
        "facts": facts,
        "budget": budget,
        "priority": priority,
        **stamp(email_id, max_attempts),
    }
    times = {"next_attempt_at": db_now(delay), "created_at": db_now()}
    if expires_in is not None:
        times["expires_at"] = db_now(expires_in)
    return email_id, times, promise


def stamp(email_id: uuid.UUID, max_attempts: int | None = None) -> dict[str, Any]:
    """Return what every new mail bears, by its columns, whatever it says and to whom."""
    return {
        "message_id": f"<{email_id}@{sender_domain()}>",
        "max_attempts": max_attempts or current_app.config["MAIL_MAX_ATTEMPTS"],
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
    }


def sender_domain() -> str:
    return addresses.domain(current_app.config["MAIL_DEFAULT_SENDER"])


def signup_priority(rank: int) -> int:
    """Return how urgent the mail of a network's so manieth signup is: behind the first one's of any other."""
    return min(max(rank, SIGNUP_PRIORITY), LAST_SIGNUP_PRIORITY)
