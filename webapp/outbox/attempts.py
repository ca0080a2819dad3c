"""Attempts at sending an email: how each ended, and what they say about the mail server."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, exists, func, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import NUMBERED_ONCE, Model, db, table
from webapp.db.clock import db_now
from webapp.smtp.protocol import AT_THE_MAIL

REPLY_MAX = 300


@dataclass(frozen=True)
class Failure:
    """Why an attempt did not end in a 250: our own error class, the step, and what the server said."""

    error_class: str
    text: str
    phase: str | None = None
    code: int | None = None


class DeliveryAttempt(Model):
    """One attempt at one email. `outcome`: sent, deferred, failed, returned, held, canceled or lease_expired."""

    __tablename__ = "delivery_attempts"
    __table_args__ = (
        Index("ix_delivery_attempts_email_id", "email_id"),
        Index("ix_delivery_attempts_finished_at", "finished_at"),
        NUMBERED_ONCE,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    email_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("outgoing_emails.id", ondelete="CASCADE"))
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime]
    outcome: Mapped[str] = mapped_column(String(20))
    phase: Mapped[str | None] = mapped_column(String(20))
    code: Mapped[int | None]
    reply: Mapped[str | None] = mapped_column(String(REPLY_MAX))
    worker: Mapped[str | None] = mapped_column(String(100))


def record(
    email_ids: Iterable[uuid.UUID],
    outcome: str,
    *,
    reply: str,
    worker: str | None = None,
    elapsed: float = 0,
    phase: str | None = None,
    code: int | None = None,
) -> None:
    """Record an attempt of `elapsed` seconds at each of these emails, as part of the caller's transaction."""
    entry = {"outcome": outcome, "phase": phase, "code": code, "reply": redact(reply), "worker": worker}
    if entries := [{"email_id": email_id, **entry} for email_id in email_ids]:
        times = {"started_at": db_now(-elapsed), "finished_at": db_now()}
        db.session.execute(insert(table(DeliveryAttempt)).values(times), entries)


def held_since(email_id: uuid.UUID) -> datetime | None:
    """Return when this email first had to wait for its address's limit, if it ever did."""
    return db.session.scalar(
        select(DeliveryAttempt.finished_at)
        .where(DeliveryAttempt.email_id == email_id, DeliveryAttempt.outcome == "held")
        .order_by(DeliveryAttempt.id)
        .limit(1)
    )


def tries(email_id: uuid.UUID) -> int:
    """Return how many attempts at this email got as far as naming its recipient."""
    at_the_mail = DeliveryAttempt.phase.in_(AT_THE_MAIL)
    return db.session.scalar(select(func.count()).where(DeliveryAttempt.email_id == email_id, at_the_mail)) or 0


def in_doubt(email_id: uuid.UUID, spent: int) -> int:
    """Return how many of the last `spent` attempts left open whether the server took this email."""
    last = (
        select(DeliveryAttempt.phase, DeliveryAttempt.code)
        .where(DeliveryAttempt.email_id == email_id, DeliveryAttempt.outcome.in_(["deferred", "failed"]))
        .order_by(DeliveryAttempt.id.desc())
        .limit(spent)
    )
    return sum(phase == "dot" and (code is None or code < 400) for phase, code in db.session.execute(last))


def accepted_others_since(email_id: uuid.UUID) -> bool:
    """Return whether the server took another email after it last failed on this one."""
    last = select(func.max(DeliveryAttempt.id)).where(DeliveryAttempt.email_id == email_id).scalar_subquery()
    sent = exists().where(DeliveryAttempt.id > last, DeliveryAttempt.outcome == "sent")
    return db.session.scalar(select(sent)) or False


def accepted_within(seconds: float, but_by: str = "") -> bool:
    """Return whether the server took any email within the last `seconds`, from any worker `but_by`."""
    sent = exists().where(DeliveryAttempt.finished_at > db_now(-seconds), DeliveryAttempt.outcome == "sent")
    if but_by:
        sent = sent.where(~DeliveryAttempt.worker.startswith(but_by, autoescape=True))
    return db.session.scalar(select(sent)) or False


def redact(reply: str) -> str:
    """Return a server's reply without addresses, links, codes and control characters, cut to REPLY_MAX."""
    # Only from the start of a word: otherwise a long word is scanned again from each of its letters.
    reply = re.sub(r"(?<!\w)\w+://\S+", "<link>", reply)
    reply = re.sub(r"(?<!\S)\S+@\S+", "<address>", reply)
    reply = re.sub(r"(?<!\d)\d{3}[ -]?\d{3}(?!\d)", "<code>", reply)
    if not reply.isprintable():
        reply = "".join(char if char.isprintable() else " " for char in reply)
    return reply[:REPLY_MAX]
