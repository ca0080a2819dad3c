"""Leases: for how long a claimed email is its worker's alone."""

from __future__ import annotations

from flask import current_app

from webapp.db.clock import ticks
from webapp.outbox.outgoing_email import OutgoingEmail

# A send gets to its final dot within MAIL_TIMEOUT, and renews its lease while it waits for the answer; this is what is
# left to record the outcome.
MARGIN = 15.0

# No setting of MAIL_TIMEOUT makes a lease longer than this.
LONGEST = 300.0 + MARGIN


def left(email: OutgoingEmail) -> float:
    """Return for how many more seconds this worker may assume that the email is its own."""
    return seconds() - (ticks() - email.claimed_ticks)


def tried_for(email: OutgoingEmail) -> float:
    """Return for how many seconds this worker has been sending the email, however often it renewed its lease."""
    return round(ticks() - email.begun_ticks, 3)


def seconds() -> float:
    return float(current_app.config["MAIL_TIMEOUT"]) + MARGIN
