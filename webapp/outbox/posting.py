"""Promising an email, as part of the caller's transaction."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from webapp.db.base import db, table
from webapp.db.clock import db_now
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp import addresses

# Lower goes first: what account owners ask for, then signups, the first of each network before the second of any.
VERIFICATION_PRIORITY = 0
SIGNUP_PRIORITY = 1
LAST_SIGNUP_PRIORITY = 9
NOTICE_PRIORITY = 10

INSERT: Mapping[str, Callable[[Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def post(
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
) -> uuid.UUID | None:
    """Promise an email that is due in `delay` seconds, as part of the caller's transaction, and return its id.

    Return None if one with its key is waiting already, which then serves both. Without `template` the first claim
    chooses one. A template of your own is a folder in instance/templates/mail/; it gets `facts` (anything that fits in
    JSON) by their names, and its email is canceled if its user is gone.
    """
    # Rows that it refers to may be new.
    db.session.flush()
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
        "delay": delay,
        **stamp(email_id, max_attempts),
    }
    times = {"next_attempt_at": db_now(delay), "created_at": db_now()}
    if expires_in is not None:
        times["expires_at"] = db_now(expires_in)
    # No savepoint: a full SQLite database would lose it, and the real error with it.
    insert_into = INSERT[db.engine.dialect.name]
    statement = insert_into(table(OutgoingEmail)).values(times).on_conflict_do_nothing()
    return email_id if db.session.scalar(statement.returning(table(OutgoingEmail).c.id), promise) else None


def add(**promise: Any) -> uuid.UUID:
    """Promise an email like post(), with a key that no other has."""
    email_id = post(**promise)
    if email_id is None:
        raise AssertionError(f"{promise['dedupe_key']} has an email already")
    return email_id


def stamp(email_id: uuid.UUID, max_attempts: int | None = None) -> dict[str, Any]:
    """Return the columns that every new email gets, whatever its kind and recipient."""
    return {
        "message_id": f"<{email_id}@{sender_domain()}>",
        "max_attempts": max_attempts or current_app.config["MAIL_MAX_ATTEMPTS"],
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
    }


def sender_domain() -> str:
    return addresses.domain(current_app.config["MAIL_DEFAULT_SENDER"])


def signup_priority(rank: int) -> int:
    """Return the priority of the email for a network's nth signup: behind the first of any other network."""
    return min(max(rank, SIGNUP_PRIORITY), LAST_SIGNUP_PRIORITY)
