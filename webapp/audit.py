"""Who did what, when, and from where: kept with the rows that it changed, and without secrets."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, insert
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import NUMBERED_ONCE, Model, db, table
from webapp.db.clock import db_now

# The network address of whoever asks now; the pages know it, what records it knows no request.
client_ip: ContextVar[str | None] = ContextVar("client_ip", default=None)

# What its browser says of itself.
client_agent: ContextVar[str] = ContextVar("client_agent", default="")

# The operator who acts now: a user's number and name, or whose command it is.
actor: ContextVar[str | None] = ContextVar("actor", default=None)

ACTOR_MAX = 100
DETAIL_MAX = 300


class AuditEvent(Model):
    """One thing that somebody did: `user_id` is whom it is about, `actor` the operator who did it.

    `action` of people: signed_up, disowned, owned_again, verified, signed_in, signed_out, other_signed_out,
    others_signed_out, sign_in_failed, address_asked, address_called_off, address_changed, address_put_back, renamed,
    exported, account_deleted, reset_asked, password_reset, password_changed; of operators: mail_retried,
    mail_canceled, mail_tested, paused, resumed, pruned, user_created, role_changed, verification_resent,
    sessions_ended, locked, unlocked, and exported and account_deleted too.
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
    """Note it as part of the caller's transaction: what did not happen leaves no event."""
    event = {"action": action, "user_id": user_id, "detail": detail[:DETAIL_MAX] if detail else None, **who()}
    db.session.execute(insert(table(AuditEvent)).values(at=db_now()), event)


def who() -> dict[str, str | None]:
    """Return who acts now, by the columns that say so."""
    return {"address": client_ip.get(), "actor": actor.get()}
