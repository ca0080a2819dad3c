"""The breaker in front of the mail server: while it is open, emails wait, and one at a time probes the server."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import ColumnElement, String, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.base import Model, db
from webapp.db.clock import db_now, is_ahead, seconds_between
from webapp.outbox import transitions
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.protocol import AT_THE_MAIL

log = structlog.get_logger(__name__)

PROBE_SECONDS = 15.0
REASON_MAX = 300

# Once a server refuses this many domains by its policy and takes nothing in between, the policy is against all emails.
EVERYBODY = 5

# How many refused addresses to read: enough to count their domains.
ENOUGH = 1000


class MailBreaker(Model):
    """One row, shared by all workers: since when the breaker is open, and why."""

    __tablename__ = "mail_breaker"

    id: Mapped[int] = mapped_column(primary_key=True)
    opened_at: Mapped[datetime | None]
    reason: Mapped[str | None] = mapped_column(String(REASON_MAX))
    probe_at: Mapped[datetime | None]


def is_open() -> bool:
    return db.session.scalar(select(MailBreaker.opened_at)) is not None


def reason() -> str | None:
    """Return why the breaker is open, or None if it is closed."""
    return db.session.scalar(select(MailBreaker.reason))


def trip(reason: str, *, probe_in: float = PROBE_SECONDS) -> None:
    """Open the breaker, and log it if it was closed; of an open one, the reason is the latest. The caller commits.

    `probe_in`: seconds until the next probe, whether or not it was open already.
    """
    opened = _write(
        MailBreaker.opened_at.is_(None), opened_at=db_now(), reason=reason[:REASON_MAX], probe_at=db_now(probe_in)
    )
    if opened:
        log.error("mail_server_down", reason=reason, probe_seconds=probe_in)
    else:
        _write(MailBreaker.opened_at.is_not(None), reason=reason[:REASON_MAX], probe_at=db_now(probe_in))


def take_probe() -> bool:
    """Return whether this worker may try the mail server now. If so, no other may for PROBE_SECONDS."""
    return _write(
        MailBreaker.opened_at.is_not(None),
        ~is_ahead(MailBreaker.probe_at, PROBE_SECONDS),
        probe_at=db_now(PROBE_SECONDS),
    )


def reset() -> None:
    """Close the breaker after the mail server answered, and make due the emails that waited. The caller commits.

    Only for a probe or a test email: with a server that fails some conversations and completes others, what any email
    tells would open and close the breaker many times a second.
    """
    seconds = db.session.scalar(select(seconds_between(MailBreaker.opened_at, db_now())))
    if _write(MailBreaker.opened_at.is_not(None), opened_at=None, reason=None, probe_at=None):
        released = transitions.release_waiting_for_server()
        log.info("mail_server_up", released=released, seconds=round(seconds or 0, 1))


def refuses_everybody() -> bool:
    """Return whether the server refused emails to many domains by its policy since it last accepted one."""
    accepted = select(func.max(DeliveryAttempt.id)).where(DeliveryAttempt.outcome == "sent").scalar_subquery()
    addresses = db.session.scalars(
        select(OutgoingEmail.to_address)
        .join(DeliveryAttempt, DeliveryAttempt.email_id == OutgoingEmail.id)
        .where(
            DeliveryAttempt.id > func.coalesce(accepted, 0),
            DeliveryAttempt.outcome == "returned",
            DeliveryAttempt.phase.in_(AT_THE_MAIL),
            # A 4xx may be greylisting, which each recipient's server does on its own.
            DeliveryAttempt.code >= 500,
        )
        .distinct()
        .limit(ENOUGH)
    )
    return len({address.rpartition("@")[2].lower() for address in addresses}) >= EVERYBODY


def _write(*conditions: ColumnElement[bool], **values: Any) -> bool:
    """Update the row if the conditions hold and no other worker has it locked; return whether it was updated."""
    free = select(MailBreaker.id).where(*conditions).with_for_update(skip_locked=True).scalar_subquery()
    changed = db.session.scalar(
        update(MailBreaker).where(MailBreaker.id == free).values(**values).returning(MailBreaker.id)
    )
    return changed is not None
