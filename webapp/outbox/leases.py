"""For how long a claimed mail is its worker's alone."""

from __future__ import annotations

from datetime import datetime, timedelta

from flask import current_app

from webapp.db.clock import ticks
from webapp.outbox.outgoing_email import OutgoingEmail

# After MAIL_TIMEOUT a send has ended in one way or another; this is what is left to write that down.
MARGIN = 15.0

# No setting of MAIL_TIMEOUT makes for a longer one.
LONGEST = 300.0 + MARGIN


def left(email: OutgoingEmail) -> float:
    """Return for how many seconds this worker may still believe that the mail is its own."""
    return seconds() - held_for(email)


def held_for(email: OutgoingEmail) -> float:
    """Return for how many seconds this worker has held the mail."""
    return round(ticks() - email.claimed_ticks, 3)


def claimed_at(email: OutgoingEmail) -> datetime | None:
    """Return when this worker claimed the mail, by the database's clock."""
    return email.lease_until - timedelta(seconds=seconds()) if email.lease_until else None


def seconds() -> float:
    return float(current_app.config["MAIL_TIMEOUT"]) + MARGIN
