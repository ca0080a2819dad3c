"""Promising a mail, as part of the caller's transaction."""

from __future__ import annotations

import uuid
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import Float, Uuid, bindparam, insert
from sqlalchemy.exc import IntegrityError

from webapp.db.base import db, table
from webapp.db.clock import db_now
from webapp.db.statements import row_of
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp import addresses

log = structlog.get_logger(__name__)

# The smaller goes first: what owners ask for, then signups, the first of each network before the second of any.
VERIFICATION_PRIORITY = 0
SIGNUP_PRIORITY = 1
LAST_SIGNUP_PRIORITY = 9
NOTICE_PRIORITY = 10

# What promises a mail; `entry` gives its parameters.
PROMISE = row_of(
    OutgoingEmail,
    "message_id",
    "dedupe_key",
    "user_id",
    "template",
    "locale",
    "to_address",
    "facts",
    "budget",
    "priority",
    "max_attempts",
    "request_id",
    id=bindparam("mail", type_=Uuid),
    verify_email_id=bindparam("proof", type_=Uuid),
    next_attempt_at=db_now(bindparam("delay", type_=Float)),
    expires_at=db_now(bindparam("expires_in", type_=Float)),
    created_at=db_now(),
)

POSTED = insert(table(OutgoingEmail)).from_select(PROMISE.selected_columns.keys(), PROMISE)


def post(**promise: Any) -> uuid.UUID | None:
    """Promise a mail, as part of the caller's transaction, and return its id; `promise` as of entry().

    Returns nothing when a mail with this key waits already: its promise serves both.
    """
    parameters = entry(**promise)
    try:
        with db.session.begin_nested():
            db.session.execute(POSTED, parameters)
    except IntegrityError:
        return None
    email_id: uuid.UUID = parameters["mail"]
    return email_id


def entry(
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
) -> dict[str, Any]:
    """Return the parameters of POSTED for a mail that is due in `delay` seconds.

    Without `template` the first claim chooses one. One of one's own is a folder in instance/templates/mail/, knows
    its `facts` (of which JSON can be made) by their names, and is canceled when its user is gone.
    """
    email_id = uuid.uuid4()
    return {
        "mail": email_id,
        "message_id": f"<{email_id}@{sender_domain()}>",
        "dedupe_key": dedupe_key,
        "user_id": user_id,
        "proof": verify_email_id,
        "template": template,
        "locale": locale,
        "to_address": to_address,
        "facts": facts,
        "budget": budget,
        "priority": priority,
        "max_attempts": max_attempts or current_app.config["MAIL_MAX_ATTEMPTS"],
        "delay": delay,
        "expires_in": expires_in,
        "request_id": structlog.contextvars.get_contextvars().get("request_id"),
    }


def sender_domain() -> str:
    return addresses.domain(current_app.config["MAIL_DEFAULT_SENDER"])


def signup_priority(rank: int) -> int:
    """Return how urgent the mail of a network's so manieth signup is: behind the first one's of any other."""
    return min(max(rank, SIGNUP_PRIORITY), LAST_SIGNUP_PRIORITY)
