"""A test email: sent at once, from here, whatever is known of the mail server, and with each of its answers told."""

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
    """Send it, without a row of it, since the database may be what ails; return its Message-ID. Raises SmtpError."""
    message = render.render(TEST_TEMPLATE, "en", address.mailed)
    message.msgId = f"<{uuid.uuid4()}@{posting.sender_domain()}>"
    mail.try_out(message, seconds, tell)
    return message.msgId


def note(outcome: str, *, accepted: bool) -> bool:
    """Audit it, and commit; what was accepted closes the breaker. Return whether it was open."""
    was_open = accepted and circuit_breaker.is_open()
    if accepted:
        circuit_breaker.reset()
    audit.record("mail_tested", detail=outcome)
    db.session.commit()
    return was_open
