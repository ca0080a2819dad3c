"""A test email: sent at once, from this process, even while the breaker is open, with every answer reported."""

from __future__ import annotations

import time
import uuid

from webapp import audit
from webapp.accounts.identifiers.email_addresses import Address
from webapp.db.base import db
from webapp.delivery import circuit_breaker
from webapp.emails import render
from webapp.extensions import mail
from webapp.outbox import posting
from webapp.outbox.kinds import TEST_TEMPLATE
from webapp.smtp.protocol import Tell

CLOSE_TRIES, CLOSE_AGAIN_SECONDS = 10, 0.1


def send(address: Address, seconds: float, tell: Tell) -> str:
    """Send it without a row, since the database may be what is broken; return its Message-ID. Raises SmtpError."""
    message = render.render(TEST_TEMPLATE, "en", address.mailed)
    message.msgId = f"<{uuid.uuid4()}@{posting.sender_domain()}>"
    mail.try_out(message, seconds, tell)
    return message.msgId


def note(outcome: str, *, accepted: bool) -> bool:
    """Audit the outcome and commit; if accepted, close the breaker. Return whether that closed an open one."""
    was_open = accepted and circuit_breaker.is_open()
    audit.record("mail_tested", detail=outcome)
    db.session.commit()
    return was_open and _close()


def _close() -> bool:
    """Close the breaker; return whether it is closed. Commits."""
    for _ in range(CLOSE_TRIES):
        circuit_breaker.reset()
        db.session.commit()
        if not circuit_breaker.is_open():
            return True
        # A worker that probes at this moment has the breaker's row.
        db.session.commit()
        time.sleep(CLOSE_AGAIN_SECONDS)
    return False
