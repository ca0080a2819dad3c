"""A test email: sent at once, from this process, even while the breaker is open, with every answer reported."""

from __future__ import annotations

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


def send(address: Address, seconds: float, tell: Tell) -> str:
    """Send it without a row, since the database may be what is broken; return its Message-ID. Raises SmtpError."""
    message = render.render(TEST_TEMPLATE, "en", address.mailed)
    message.msgId = f"<{uuid.uuid4()}@{posting.sender_domain()}>"
    mail.try_out(message, seconds, tell)
    return message.msgId


def note(outcome: str, *, accepted: bool) -> bool:
    """Audit the outcome and commit; if accepted, close the breaker. Return whether that closed an open one."""
    was_open = accepted and circuit_breaker.is_open()
    if accepted:
        circuit_breaker.reset()
    audit.record("mail_tested", detail=outcome)
    db.session.commit()
    return was_open
