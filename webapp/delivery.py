"""Sending what was promised: claim, compose, send, settle, and what each answer of the mail server means."""

from __future__ import annotations

import os
import random
import socket
import threading
import uuid

import structlog
from flask import current_app, render_template
from flask_babel import force_locale

from webapp import outbox, users, verification
from webapp.extensions import db, mail
from webapp.outbox import Failure, LeaseLost, OutgoingEmail
from webapp.smtp import Message, SmtpError
from webapp.verification import VerifyEmail

log = structlog.get_logger(__name__)

# While the mail server itself is the trouble, each mail asks again about this often.
SERVER_RETRY = 15.0

VERIFY_TEMPLATE = "verify_email"
ACCOUNT_EXISTS_TEMPLATE = "account_exists"


class DeliveryFailed(Exception):
    """This try sent nothing; the outbox knows when the next one is."""


def deliver(email_id: uuid.UUID) -> None:
    """Send this mail if it is due and nobody else does. Raises DeliveryFailed."""
    for email in outbox.claim(worker_name(), email_id=email_id):
        _choose(email)
        db.session.commit()
        with structlog.contextvars.bound_contextvars(email_id=str(email.id), attempt=email.attempts + 1):
            try:
                _send(email)
            except LeaseLost:
                db.session.rollback()
                log.warning("lease_lost")


def _choose(email: OutgoingEmail) -> None:
    """Fix which mail this is, within the claim: a retry must not choose again.

    Here and not at signup is decided what a known address gets, so that signup answers everybody alike.
    """
    proof = db.session.get(VerifyEmail, email.verify_email_id) if email.verify_email_id else None
    if proof is None or email.template is not None:
        return
    owner = users.find_verified(email_key=proof.email_key)
    if owner is None:
        email.template = VERIFY_TEMPLATE
    else:
        email.template, email.locale = ACCOUNT_EXISTS_TEMPLATE, owner.locale
        # An existing account is written to at its own spelling only.
        email.to_address = owner.email


def _send(email: OutgoingEmail) -> None:
    if reason := _needless(email):
        outbox.drop(email, reason)
        db.session.commit()
        log.info("email_canceled", reason=reason)
        return
    message = compose(email)
    # No transaction stays open during the conversation. (A rollback would expire what was read.)
    db.session.commit()
    try:
        with mail.connect() as connection:
            reply = connection.send(message)
    except SmtpError as error:
        _record_failure(email, error)
        raise DeliveryFailed(outbox.redact(str(error))) from error
    outbox.settle(email, reply)
    if email.template == VERIFY_TEMPLATE and email.verify_email_id:
        verification.handed_off(email.verify_email_id)
    db.session.commit()
    log.info("email_sent", smtp_reply=outbox.redact(reply))


def _needless(email: OutgoingEmail) -> str | None:
    """Return why nobody needs this mail any more, if so."""
    if email.user_id is None:
        return "its user is gone"
    if email.template != VERIFY_TEMPLATE or email.verify_email_id is None:
        return None
    proof = db.session.get_one(VerifyEmail, email.verify_email_id)
    if proof.used_at is not None:
        return "verified meanwhile"
    return proof.void_reason if proof.voided_at is not None else None


def compose(email: OutgoingEmail) -> Message:
    """Build the mail: the same at every call."""
    proof = db.session.get(VerifyEmail, email.verify_email_id) if email.verify_email_id else None
    context = {
        "app_name": current_app.config["APP_NAME"],
        "public_url": current_app.config["PUBLIC_URL"],
        "link": verification.link(proof) if proof and email.template == VERIFY_TEMPLATE else None,
    }
    with force_locale(email.locale or "en"):
        subject = render_template(f"mail/{email.template}/subject.txt", **context)
        message = Message(
            subject=" ".join(subject.split()),
            recipients=[email.to_address],
            body=render_template(f"mail/{email.template}/body.txt", **context),
            html=render_template(f"mail/{email.template}/body.html", **context),
            reply_to=current_app.config["MAIL_REPLY_TO"],
            extra_headers={"Auto-Submitted": "auto-generated"},
        )
    message.msgId = email.message_id
    return message


def _record_failure(email: OutgoingEmail, error: SmtpError) -> None:
    failure = Failure(type(error).__name__, error.reply, phase=error.phase, code=error.code)
    fields = {"phase": error.phase, "smtp_code": error.code, "error": outbox.redact(error.reply)}
    if is_server_wide(error):
        outbox.postpone(email, failure, delay=SERVER_RETRY * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
        log.error("mail_server_failed", **fields)
    elif error.code is not None and error.code >= 500:
        outbox.bury(email, failure)
        log.error("email_dead", **fields)
    else:
        outbox.postpone(email, failure, in_doubt=error.phase == "dot" and error.code is None)
        log.warning("email_deferred", **fields)
    db.session.commit()


def is_server_wide(error: SmtpError) -> bool:
    """Return whether the server would have answered any mail like this; such a try spends no attempt."""
    return error.phase in {"connect", "tls", "login", "sender"} or error.code == 421


def worker_name() -> str:
    return f"{socket.gethostname()[:60]}:{os.getpid()}:{threading.current_thread().name[:20]}"
