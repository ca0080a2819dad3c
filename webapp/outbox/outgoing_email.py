"""Emails that we promised to send, and what became of each."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    String,
    cast,
    false,
    func,
    literal,
    or_,
    select,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import Model, db, partial_index

# Error classes: not the email's fault; refused by the server's policy, as all emails may be; no answer for a long time.
SERVER_FAILURE = "MailServer"
POLICY = "Policy"
SLOW = "Slow"
# Also: another email brought the link to the address; the email may have arrived, even several times.
SUPERSEDED = "Superseded"
UNCONFIRMED = "Unconfirmed"

ERROR_CLASS_MAX = 50

# Replaces a forgotten address: no email can be sent there.
FORGOTTEN = "forgotten"

# The first part of the budget of these kinds of emails.
SIGNUPS = "signup"
RESETS = "reset"


class OutgoingEmail(Model):
    """One promise: an email, its state, and why it is in that state."""

    __tablename__ = "outgoing_emails"
    __table_args__ = (
        CheckConstraint("status IN ('queued', 'sending', 'sent', 'dead', 'canceled')", name="status"),
        CheckConstraint("(status = 'sending') = (lease_token IS NOT NULL)", name="lease"),
        partial_index("ix_outgoing_emails_due", "priority", "next_attempt_at", where="status = 'queued'"),
        partial_index("ix_outgoing_emails_next", "next_attempt_at", where="status = 'queued'"),
        partial_index("ix_outgoing_emails_expiring", "expires_at", where="status = 'queued'"),
        partial_index("ix_outgoing_emails_leased", "lease_until", where="status = 'sending'"),
        partial_index(
            "uq_outgoing_emails_active_dedupe_key", "dedupe_key", where="status IN ('queued', 'sending')", unique=True
        ),
        partial_index("ix_outgoing_emails_sent_at", "sent_at", where="sent_at IS NOT NULL"),
        Index("ix_outgoing_emails_budget", "budget", "created_at"),
        Index("ix_outgoing_emails_user_id", "user_id"),
        Index("ix_outgoing_emails_verify_email_id", "verify_email_id"),
        Index("ix_outgoing_emails_created", "created_at", "id"),
        partial_index("ix_outgoing_emails_dead", "created_at", "id", where="status = 'dead'"),
        Index("ix_outgoing_emails_address", text("lower(to_address)"), "created_at", "id"),
        # Partial, without the most common value, except on SQLite: it cannot tell that a code asked for is not 250.
        Index(
            "ix_outgoing_emails_code",
            "last_smtp_code",
            "created_at",
            "id",
            postgresql_where=text("last_smtp_code <> 250"),
        ),
        Index(
            "ix_outgoing_emails_template",
            "template",
            "created_at",
            "id",
            postgresql_where=text("template <> 'verify_email'"),
        ),
        partial_index("ix_outgoing_emails_canceled", "created_at", "id", where="status = 'canceled'"),
        partial_index(
            "ix_outgoing_emails_reasons", "last_error_class", "last_smtp_code", "created_at", where="status = 'dead'"
        ),
        partial_index("ix_outgoing_emails_finished", "finished_at", where="finished_at IS NOT NULL"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    message_id: Mapped[str] = mapped_column(String(320), unique=True)
    dedupe_key: Mapped[str] = mapped_column(String(320))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    verify_email_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("verify_emails.id", ondelete="SET NULL"))
    # The first claim sets these two and the address, so that a retry sends the same email.
    template: Mapped[str | None] = mapped_column(String(50))
    locale: Mapped[str | None] = mapped_column(String(20))
    to_address: Mapped[str] = mapped_column(String(254))
    # Other facts for its text; never a secret.
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    # Shared by emails that are limited together: those of one kind to one mailbox.
    budget: Mapped[str | None] = mapped_column(String(280))
    priority: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[str] = mapped_column(String(10), server_default="queued")
    attempts: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int]
    lease_expiries: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime]
    # The seconds after its promise for which it is not to be sent; emails of releases before 1.0 have none.
    delay: Mapped[float | None]
    expires_at: Mapped[datetime | None]
    # Of releases before 1.0, which may run beside ours. No statement of ours names it, so the next release may drop it.
    hinted_at: Mapped[datetime | None] = mapped_column(deferred=True)
    lease_token: Mapped[uuid.UUID | None]
    lease_until: Mapped[datetime | None]
    locked_by: Mapped[str | None] = mapped_column(String(100))
    in_doubt: Mapped[bool] = mapped_column(server_default=false())
    last_error_class: Mapped[str | None] = mapped_column(String(ERROR_CLASS_MAX))
    last_smtp_code: Mapped[int | None]
    last_error: Mapped[str | None] = mapped_column(String(300))
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # The request that promised it, to follow it through the logs.
    request_id: Mapped[str | None] = mapped_column(String(64))

    # Not columns. By clock.ticks(): when this process claimed it or last renewed its lease; when it began to send it.
    # Then with which token (a row read again after a rollback may have another worker's); whether it gave up on the
    # email; whether its link may serve others that wait.
    claimed_ticks = 0.0
    begun_ticks = 0.0
    claim_token = uuid.UUID(int=0)
    is_buried = False
    is_awaited = False


# The dedupe key of an email that waits for its mailbox: unique, so that another may be promised in the meantime.
HELD_KEY = literal("held:") + cast(OutgoingEmail.id, String)


def budget(kind: str, address: str) -> str:
    """Return the key that limits emails together: those of one kind to one mailbox, whatever "+tag" the address has."""
    local, _, domain = address.lower().rpartition("@")
    return f"{kind}:{local.split('+')[0] or local}@{domain}"


def is_signup() -> ColumnElement[bool]:
    return func.coalesce(OutgoingEmail.budget, "").startswith(f"{SIGNUPS}:")


def unheld(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether an email meets the conditions and its row is not locked, so that nobody waits for another."""
    free = select(OutgoingEmail.id).where(*conditions).with_for_update(skip_locked=True).cte()
    return OutgoingEmail.id.in_(select(free.c.id))


def serves(newer: Any, older: Any) -> ColumnElement[bool]:
    """Return whether the link of one email serves whoever waits for another.

    A signup's link proves its address for every signup with it, and a link for a forgotten password leads to the
    account of its address; all others are bound to their own accounts.
    """
    binds_nobody = or_(*(newer.budget.startswith(f"{kind}:") for kind in (SIGNUPS, RESETS)))
    serves: ColumnElement[bool] = (
        (newer.budget == older.budget)
        & (func.lower(newer.to_address) == func.lower(older.to_address))
        & (binds_nobody | (newer.user_id == older.user_id))
    )
    return serves


def latest_of(verify_email_id: uuid.UUID) -> OutgoingEmail | None:
    """Return the newest email that was promised for this link."""
    return db.session.scalar(
        select(OutgoingEmail)
        .where(OutgoingEmail.verify_email_id == verify_email_id)
        .order_by(OutgoingEmail.created_at.desc())
        .limit(1)
    )
