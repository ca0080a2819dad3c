"""Emails taken back from dead workers, and buried when they expire."""

from __future__ import annotations

import structlog
from flask import current_app
from limits import RateLimitItem
from sqlalchemy import and_, case, func, update

from webapp.db.base import db
from webapp.db.clock import MOMENT, db_now, seconds_between
from webapp.outbox import attempts, leases
from webapp.outbox.outgoing_email import OutgoingEmail, unheld
from webapp.outbox.transitions import count_changed

log = structlog.get_logger(__name__)

# An email that outlived this many workers is retried only rarely: it may be what kills them.
POISON_EXPIRIES = 5
QUARANTINE = 3600.0

# A wait that is this much longer than any can be was written by a wrong clock.
MARGIN = 60.0

# The error class of an email that expired before it was sent.
EXPIRED = "Expired"


def reap() -> int:
    """Take emails back from workers that died, and bury those that expired; return how many."""
    expiries = OutgoingEmail.lease_expiries + 1
    reaped = db.session.execute(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "sending", OutgoingEmail.lease_until < db_now()))
        .values(
            status="queued",
            lease_token=None,
            lease_until=None,
            lease_expiries=expiries,
            next_attempt_at=case((expiries >= POISON_EXPIRIES, db_now(QUARANTINE)), else_=db_now()),
            in_doubt=True,
            last_error_class="LeaseExpired",
            last_error="the worker ended before it could record the outcome",
        )
        .returning(OutgoingEmail.id, OutgoingEmail.lease_expiries, OutgoingEmail.locked_by),
        execution_options={"synchronize_session": False},
    ).all()
    for email_id, lease_expiries, worker in reaped:
        attempts.record([email_id], "lease_expired", worker=worker, reply="the worker ended")
        tell = log.error if lease_expiries >= POISON_EXPIRIES else log.warning
        tell("lease_expired", email_id=str(email_id), lease_expiries=lease_expiries, worker=worker)
    expired = db.session.scalars(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "queued", OutgoingEmail.expires_at <= db_now()))
        .values(status="dead", finished_at=db_now(), last_error_class=EXPIRED)
        .returning(OutgoingEmail.id),
        execution_options={"synchronize_session": False},
    ).all()
    attempts.record(expired, "failed", reply="it expired before it could be sent")
    for email_id in expired:
        log.error("email_dead", email_id=str(email_id), meaning=EXPIRED)
    return len(reaped) + len(expired)


def mend_times() -> int:
    """Fix times that were written while the database's clock was ahead: they count as now. Return how many emails."""
    # Time enough for a worker that is alive, and no more for one that died.
    held = count_changed(
        update(OutgoingEmail)
        .where(unheld(OutgoingEmail.status == "sending", OutgoingEmail.lease_until > db_now(leases.LONGEST)))
        .values(lease_until=db_now(leases.seconds()))
    )
    delay = func.coalesce(OutgoingEmail.delay, 0.0)
    came_later = OutgoingEmail.created_at > db_now(MOMENT)
    longest = _longest_wait()
    waits_too_long = and_(
        OutgoingEmail.next_attempt_at > db_now(longest),
        # An email may have been promised for much later.
        seconds_between(OutgoingEmail.created_at, OutgoingEmail.next_attempt_at) > delay + longest,
    )
    return held + count_changed(
        update(OutgoingEmail)
        .where(
            unheld(
                OutgoingEmail.status == "queued", OutgoingEmail.next_attempt_at > db_now(), came_later | waits_too_long
            )
        )
        .values(
            next_attempt_at=db_now(case((came_later, delay), else_=0.0)),
            created_at=case((came_later, db_now()), else_=OutgoingEmail.created_at),
        )
    )


def _longest_wait() -> float:
    """Return for how many seconds at most an email waits: for its mailbox, or in quarantine."""
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    return max([QUARANTINE, *(limit.get_expiry() for limit in limits)]) + MARGIN
