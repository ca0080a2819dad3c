"""The pause: while an operator has paused all email, no worker claims any."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ColumnElement, String, exists, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import Model, db
from webapp.db.clock import db_now

REASON_MAX = 300


class MailPause(Model):
    """One row, shared by all processes: paused since when, by whom and why."""

    __tablename__ = "mail_pause"

    id: Mapped[int] = mapped_column(primary_key=True)
    paused_at: Mapped[datetime | None]
    paused_by: Mapped[str | None] = mapped_column(String(100))
    reason: Mapped[str | None] = mapped_column(String(REASON_MAX))


def begin(reason: str, by: str | None) -> datetime | None:
    """Pause all email; return since when, or None if it was already paused. Emails being sent are finished.

    The caller commits.
    """
    return db.session.scalar(
        update(MailPause)
        .where(MailPause.paused_at.is_(None))
        .values(paused_at=db_now(), paused_by=by, reason=reason)
        .returning(MailPause.paused_at)
    )


def end(since: datetime | None = None) -> bool:
    """Resume all email; return False if it was not paused, or not by the pause that began at `since`.

    The caller commits.
    """
    resumed = db.session.scalar(
        update(MailPause)
        .where(MailPause.paused_at.is_not(None) if since is None else MailPause.paused_at == since)
        .values(paused_at=None, paused_by=None, reason=None)
        .returning(MailPause.id)
    )
    return resumed is not None


def is_paused() -> bool:
    return db.session.scalar(select(condition())) or False


def condition() -> ColumnElement[bool]:
    """Return is_paused() as SQL, so that no claim slips in between."""
    return exists().where(MailPause.paused_at.is_not(None))
