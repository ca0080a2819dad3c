"""The breaker before the mail server: while it is open, mails wait in line, and one of them tries now and then."""

from __future__ import annotations

from datetime import datetime

import structlog
from sqlalchemy import String, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp import backlog
from webapp.clock import db_now
from webapp.extensions import Model, db

log = structlog.get_logger(__name__)

PROBE_SECONDS = 15.0


class MailBreaker(Model):
    """One row, which all workers share: open since when, and why."""

    __tablename__ = "mail_breaker"

    id: Mapped[int] = mapped_column(primary_key=True)
    opened_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(300))
    probe_at: Mapped[datetime | None]


def is_open() -> bool:
    return db.session.scalar(select(MailBreaker.opened_at)) is not None


def trip(reason: str) -> None:
    """Open the breaker, and tell the operator if it was closed. The caller commits."""
    opened = db.session.scalar(
        update(MailBreaker)
        .where(MailBreaker.opened_at.is_(None))
        .values(opened_at=db_now(), reason=reason, probe_at=db_now(PROBE_SECONDS))
        .returning(MailBreaker.id)
    )
    if opened is not None:
        log.error("mail_server_down", reason=reason, probe_seconds=PROBE_SECONDS)


def take_probe() -> bool:
    """Return whether this worker may try the mail server now, which nobody else may for a while."""
    taken = db.session.scalar(
        update(MailBreaker)
        .where(MailBreaker.opened_at.is_not(None), MailBreaker.probe_at <= db_now())
        .values(probe_at=db_now(PROBE_SECONDS))
        .returning(MailBreaker.id)
    )
    return taken is not None


def reset(claimed_at: datetime | None = None) -> None:
    """Close the breaker, since the mail server took a mail, and make due what waited for it. The caller commits.

    A mail that was claimed before the breaker opened proves nothing: while a server refuses some conversations
    and ends others well, the breaker would open and close many times a second.
    """
    closed = db.session.scalar(
        update(MailBreaker)
        .where(MailBreaker.opened_at.is_not(None), *([MailBreaker.opened_at <= claimed_at] if claimed_at else []))
        .values(opened_at=None, reason=None, probe_at=None)
        .returning(MailBreaker.id)
    )
    if closed is not None:
        released = backlog.release_waiting_for_server()
        log.info("mail_server_up", released=released)
