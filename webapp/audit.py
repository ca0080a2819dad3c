"""Who did what, when and from where: committed with the change itself, and without secrets."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, insert
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import NUMBERED_ONCE, Model, db, table
from webapp.db.clock import db_now

# The client's network address. The pages set it, so that code that records events needs no request.
client_ip: ContextVar[str | None] = ContextVar("client_ip", default=None)

# The client's User-Agent header.
client_agent: ContextVar[str] = ContextVar("client_agent", default="")

# The client's country, two capital letters of ISO 3166, if a proxy says so.
client_country: ContextVar[str | None] = ContextVar("client_country", default=None)

# The operator who is acting: a user's id and name, or whoever runs the command.
actor: ContextVar[str | None] = ContextVar("actor", default=None)

ACTOR_MAX = 100
DETAIL_MAX = 300


class AuditEvent(Model):
    """One thing that somebody did: `user_id` is the account it concerns, `actor` the operator who did it.

    `action` by people: signed_up, disowned, owned_again, verified, signed_in, signed_out, other_signed_out,
    others_signed_out, sign_in_failed, address_asked, address_called_off, address_changed, address_put_back, renamed,
    exported, account_deleted, reset_asked, password_reset, password_changed, second_factor_on, second_factor_off,
    second_factor_failed, recovery_code_used, recovery_codes_made; by operators: mail_retried, mail_canceled,
    mail_tested, paused, resumed, pruned, user_created, role_changed, verification_resent, sessions_ended, locked,
    unlocked, second_factor_reset, and exported and account_deleted too.
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index("ix_audit_events_user_id", "user_id"),
        Index("ix_audit_events_at", "at"),
        NUMBERED_ONCE,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    action: Mapped[str] = mapped_column(String(30))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    address: Mapped[str | None] = mapped_column(String(45))
    actor: Mapped[str | None] = mapped_column(String(ACTOR_MAX))
    detail: Mapped[str | None] = mapped_column(String(DETAIL_MAX))


def record(action: str, user_id: int | None = None, detail: str | None = None) -> None:
    """Record an event in the caller's transaction: a change that is rolled back leaves none."""
    event = {"action": action, "user_id": user_id, "detail": detail[:DETAIL_MAX] if detail else None, **who()}
    db.session.execute(insert(table(AuditEvent)).values(at=db_now()), event)


def who() -> dict[str, str | None]:
    """Return the columns that say who is acting."""
    return {"address": client_ip.get(), "actor": actor.get()}
