"""The promises, checked one by one, each finding with the command to type."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from flask import current_app
from sqlalchemy import ColumnElement, and_, exists, func, literal_column, or_, select
from sqlalchemy.orm import aliased

from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now, was_lately
from webapp.delivery import circuit_breaker, heartbeats, throttle
from webapp.delivery.circuit_breaker import MailBreaker
from webapp.monitoring import queries
from webapp.outbox import pause, posting
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import UNCONFIRMED, OutgoingEmail
from webapp.outbox.pause import MailPause

# What may be in trouble for so long before an operator is told: by then it should have mended itself.
LEASE_SECONDS = 30.0
OVERDUE_SECONDS = 60.0
BREAKER_SECONDS = 60.0
# Mails that were never confirmed are told for so long.
UNCONFIRMED_SECONDS = 86400.0

SEND_NOW = "flask mail relay --once"
SHOW_DEAD = "flask mail list --status dead"
RESUME = "flask mail resume"


@dataclass(frozen=True)
class Finding:
    """A promise that is not kept, and the command that mends it or shows more."""

    check: str
    text: str
    command: str


def findings() -> list[Finding]:
    """Return what should not be, in the order in which to look at it. Raises DatabaseAway, also of a full one."""
    _try_to_promise()
    other = aliased(User)
    found = [
        _breaker_open(),
        _no_worker() or _overdue(),
        _mails(
            "unconfirmed",
            "dead since yesterday, as the mail server did not confirm them in time, though it may have sent them: raise"
            " MAIL_ANSWER_TIMEOUT",
            OutgoingEmail.status == literal_column("'dead'"),
            OutgoingEmail.last_error_class == UNCONFIRMED,
            was_lately(OutgoingEmail.finished_at, UNCONFIRMED_SECONDS),
            command=SHOW_DEAD,
        ),
        _mails(
            "lease_expired",
            "held by workers whose time was over half a minute ago",
            OutgoingEmail.status == "sending",
            OutgoingEmail.lease_until < db_now(-LEASE_SECONDS),
            command=SEND_NOW,
        ),
        _mails("lease_inconsistent", "in a state that the lease contradicts", _contradicts_lease()),
        _mails("sent_without_250", "sent without an attempt that got a 250", OutgoingEmail.status == "sent", ~_proof()),
        _mails("promised_twice", "on their way twice", OutgoingEmail.status.in_(queries.ACTIVE), _active_twin()),
        _user(
            "verified_in_vain",
            "used a verification, and is not verified",
            User.email_verified_at.is_(None),
            exists().where(VerifyEmail.user_id == User.id, VerifyEmail.used_at.is_not(None)),
            # A link proves its address, for whichever signup of it the browser held.
            ~exists().where(other.email_key == User.email_key, other.email_verified_at.is_not(None)),
        ),
        _user(
            "verified_but_purged",
            "is verified, and would be purged all the same",
            User.email_verified_at.is_not(None),
            User.purge_at.is_not(None),
        ),
    ]
    return [finding for finding in found if finding is not None]


def notes() -> list[Finding]:
    """Return what is as it should be, and yet for an operator to know."""
    limit = throttle.spent()
    noted = [
        _paused(),
        Finding("limit_reached", f"mails wait, since {limit} were sent: see MAIL_LIMIT_TOTAL", "flask mail stats")
        if limit
        else None,
        Finding("pace", "mails wait for their turns: see MAIL_LIMIT_TOTAL", "flask mail stats")
        if throttle.is_full()
        else None,
        _no_proxy(),
        _mails("dead", "dead", OutgoingEmail.status == "dead", command=SHOW_DEAD),
    ]
    return [note for note in noted if note is not None]


def _try_to_promise() -> None:
    """Write a mail, and take it back: a database that is full, or may only be read, answers all questions well."""
    posting.post(
        to_address="doctor@example.invalid",
        user_id=None,
        dedupe_key=f"doctor:{uuid.uuid4()}",
        template="test",
        locale="en",
        priority=posting.NOTICE_PRIORITY,
        max_attempts=1,
    )
    db.session.rollback()


def _breaker_open() -> Finding | None:
    reason = db.session.scalar(select(MailBreaker.reason).where(MailBreaker.opened_at < db_now(-BREAKER_SECONDS)))
    if reason is None:
        return None
    return Finding("breaker_open", f"the mail server has been failing for over a minute: {reason}", SEND_NOW)


def _paused() -> Finding | None:
    held = db.session.execute(
        select(MailPause.paused_by, MailPause.reason).where(MailPause.paused_at.is_not(None))
    ).first()
    return Finding("paused", f"all mail is held back by {held.paused_by}: {held.reason}", RESUME) if held else None


def _no_proxy() -> Finding | None:
    # We speak no https ourselves.
    if not current_app.config["SESSION_COOKIE_SECURE"] or current_app.config["TRUSTED_PROXIES"]:
        return None
    text = "PUBLIC_URL is https, so a proxy stands before us, and none is trusted: all people share one limit"
    return Finding("no_proxy", f"{text}, and forms that are opened over http fail", "TRUSTED_PROXIES=1")


def _no_worker() -> Finding | None:
    if db.session.scalar(select(exists().where(heartbeats.is_alive()))):
        return None
    return _mails("no_worker", "due, and no worker is alive", queries.is_due(), command=heartbeats.START_WORKER)


def _overdue() -> Finding | None:
    if circuit_breaker.is_open() or throttle.spent() or throttle.is_full() or pause.is_paused():
        return None
    return _mails(
        "overdue",
        "overdue by more than a minute, though a worker is alive",
        OutgoingEmail.status == "queued",
        OutgoingEmail.next_attempt_at < db_now(-OVERDUE_SECONDS),
        command=SEND_NOW,
    )


def _mails(check: str, trouble: str, *conditions: ColumnElement[bool], command: str | None = None) -> Finding | None:
    """Return what is wrong with the mails that are so; without a command, the one that shows the first of them."""
    query = select(OutgoingEmail.id, func.count().over()).where(*conditions).order_by(OutgoingEmail.id).limit(1)
    first = db.session.execute(query).one_or_none()
    if first is None:
        return None
    email_id, count = first
    text = f"{count} {'mail is' if count == 1 else 'mails are'} {trouble}"
    return Finding(check, text, command or f"flask mail show {email_id}")


def _user(check: str, trouble: str, *conditions: ColumnElement[bool]) -> Finding | None:
    user_id = db.session.scalar(select(User.id).where(*conditions).order_by(User.id).limit(1))
    if user_id is None:
        return None
    return Finding(check, f"user {user_id} {trouble}", f"flask mail list --user {user_id}")


# What the questions are made of.


def _contradicts_lease() -> ColumnElement[bool]:
    is_leased = and_(OutgoingEmail.lease_token.is_not(None), OutgoingEmail.lease_until.is_not(None))
    has_lease = or_(OutgoingEmail.lease_token.is_not(None), OutgoingEmail.lease_until.is_not(None))
    return or_(and_(OutgoingEmail.status == "sending", ~is_leased), and_(OutgoingEmail.status != "sending", has_lease))


def _proof() -> ColumnElement[bool]:
    return exists().where(
        DeliveryAttempt.email_id == OutgoingEmail.id, DeliveryAttempt.outcome == "sent", DeliveryAttempt.code == 250
    )


def _active_twin() -> ColumnElement[bool]:
    twin = aliased(OutgoingEmail)
    return exists().where(
        twin.dedupe_key == OutgoingEmail.dedupe_key, twin.id != OutgoingEmail.id, twin.status.in_(queries.ACTIVE)
    )
