"""Sending what was promised: claim, compose, send, settle, and what each answer of the mail server means."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import structlog
from flask import current_app
from sqlalchemy.exc import OperationalError

from webapp import (
    attempts,
    backlog,
    breaker,
    budget,
    claims,
    mails,
    outbox,
    recovery,
    totals,
    users,
    verification,
    workers,
)
from webapp.attempts import Failure
from webapp.claims import LeaseLost
from webapp.extensions import db, mail
from webapp.mails import ACCOUNT_EXISTS_TEMPLATE, LINK_TEMPLATES, OWNERLESS
from webapp.outbox import OutgoingEmail
from webapp.smtp import Aborted, SmtpError
from webapp.verification import VerifyEmail

log = structlog.get_logger(__name__)

# The final dot is sent only while the lease has this long left: else another worker may have the mail by then.
FINISH_MARGIN = 10.0

# Different recipients refused in a row until we believe that it is the server.
REFUSALS_IN_A_ROW = 5

# How often a mail tries a server that takes it and does not say so: each try may be a duplicate.
IN_DOUBT_DELAYS = [15.0, 30.0, *[45.0] * 8]
IN_DOUBT_DELAY_MAX = 1800.0

# The database may be away just when a mail was accepted; for this long its worker keeps what it knows.
SETTLE_AGAIN_SECONDS = 1.0


class DeliveryFailed(Exception):
    """This try sent nothing; the outbox knows when the next one is."""


def deliver(email_id: uuid.UUID) -> None:
    """Send this mail if it is due, nobody else does, and mails may go now. Raises DeliveryFailed."""
    if are_held():
        db.session.rollback()
        return
    _send_all(claims.claim(worker_name(), email_id=email_id))


def deliver_due(limit: int) -> int:
    """Send due mails one by one, the most urgent first, while they may go; return how many were tried."""
    for tried in range(limit):
        if are_held():
            db.session.rollback()
            return tried
        claimed = claims.claim(worker_name())
        if not claimed:
            db.session.rollback()
            return tried
        # Its failure is logged, and written down: the others go on.
        with suppress(DeliveryFailed):
            _send_all(claimed)
    return limit


def probe() -> None:
    """While the breaker is open: let one due mail try the mail server, if nobody did lately."""
    if budget.spent() or not breaker.take_probe():
        db.session.rollback()
        return
    with suppress(DeliveryFailed):
        # One that nobody needs, or whose address got enough, says nothing of the server.
        while (claimed := claims.claim(worker_name())) and not _send_all(claimed):
            pass
    db.session.commit()


def are_held() -> bool:
    """Return whether all mails wait: for the mail server, or since too many were sent."""
    return breaker.is_open() or budget.spent() is not None


def _send_all(claimed: Sequence[OutgoingEmail]) -> bool:
    """Return whether one of them went as far as the mail server. Raises DeliveryFailed."""
    tried = False
    for email in claimed:
        _choose(email)
    admitted = [email for email in claimed if budget.admit(email)]
    db.session.commit()
    for email in admitted:
        with structlog.contextvars.bound_contextvars(**_log_fields(email)):
            try:
                tried = _send(email) or tried
            except LeaseLost:
                db.session.rollback()
                log.warning("lease_lost")
                totals.count(totals.FENCED_WRITES)
    return tried


def _log_fields(email: OutgoingEmail) -> dict[str, Any]:
    """Return what tells a mail's log lines apart, from the request that promised it on."""
    fields = {
        "email_id": str(email.id),
        "user_id": email.user_id,
        "request_id": email.request_id,
        "attempt": email.attempts + 1,
    }
    return fields | ({"to_address": email.to_address} if current_app.config["LOG_ADDRESSES"] else {})


def _choose(email: OutgoingEmail) -> None:
    """Fix which mail this is, within the claim: a retry must not choose again.

    Here and not at signup is decided what a known address gets, so that signup answers everybody alike.
    """
    if email.template == recovery.TEMPLATE and email.user_id is None:
        recovery.find_owner(email)
    proof = db.session.get(VerifyEmail, email.verify_email_id) if email.verify_email_id else None
    if proof is None:
        return
    verification.ensure_key(proof)
    if email.template is not None:
        return
    owner = users.find_verified(email_key=proof.email_key)
    if owner is None:
        email.template = LINK_TEMPLATES[proof.purpose]
    else:
        email.template, email.locale = ACCOUNT_EXISTS_TEMPLATE, owner.locale
        # An existing account is written to at its own spelling only.
        email.to_address = owner.email


def _send(email: OutgoingEmail) -> bool:
    """Return whether it was sent, or else was needless. Raises DeliveryFailed."""
    if reason := _needless(email):
        budget.drop(email, reason)
        db.session.commit()
        log.info("email_canceled", reason=reason)
        return False
    try:
        message = mails.compose(email)
        size = len(message.content)
    except Exception as error:
        # A template, or an address that no header can hold: nothing that another worker could do better.
        claims.postpone(email, Failure("Unsendable", f"{type(error).__name__}: {error}"))
        db.session.commit()
        log.exception("email_unsendable")
        raise DeliveryFailed(f"{type(error).__name__}: {attempts.redact(str(error))}") from error
    # No transaction stays open during the conversation. (A rollback would expire what was read.)
    db.session.commit()
    try:
        with mail.connect() as connection:
            reply = connection.send(message, may_finish=lambda: claims.lease_left(email) >= FINISH_MARGIN)
    except SmtpError as error:
        _record_failure(email, error)
        raise DeliveryFailed(attempts.redact(str(error))) from error
    _settle(email, reply)
    log.info(
        "email_sent", duration=claims.held_for(email), smtp_code=250, bytes=size, smtp_reply=attempts.redact(reply)
    )
    return True


def _settle(email: OutgoingEmail, reply: str) -> None:
    """Write down that the mail was accepted, and go on trying to while nobody else can have it.

    A database that is away for a moment must not make a duplicate of what was sent.
    """
    while True:
        try:
            claims.settle(email, reply)
            if email.verify_email_id and mails.carries_link(email):
                verification.handed_off(email.verify_email_id)
            breaker.reset(claims.claimed_at(email))
            db.session.commit()
        except OperationalError:
            db.session.rollback()
            if claims.lease_left(email) < SETTLE_AGAIN_SECONDS or mail.stopping:
                raise
            time.sleep(SETTLE_AGAIN_SECONDS)
        else:
            return


def _needless(email: OutgoingEmail) -> str | None:
    """Return why nobody needs this mail any more, if so."""
    if email.user_id is None and email.template not in OWNERLESS:
        return "nobody has this address" if email.template == recovery.TEMPLATE else "its user is gone"
    if email.to_address == outbox.FORGOTTEN:
        return "its address is forgotten"
    if not mails.carries_link(email):
        return None
    if email.verify_email_id is None:
        return "its link is gone"
    proof = db.session.get(VerifyEmail, email.verify_email_id)
    if proof is None:
        return "its user is gone"
    if proof.used_at is not None:
        return "verified meanwhile"
    return proof.void_reason if proof.voided_at is not None else None


def _record_failure(email: OutgoingEmail, error: SmtpError) -> None:
    """Write down what the answer means: for this mail, or for all of them."""
    failure = Failure("Refused", error.reply, phase=error.phase, code=error.code)
    in_doubt = error.phase == "dot" and error.code is None
    meant: str = meaning(error)
    if meant == "server" and error.phase in AT_THE_MAIL and attempts.accepted_others_since(email.id):
        # The server takes others, and has trouble with this mail again: then it is this mail.
        meant = "later"
    if isinstance(error, Aborted) or (mail.stopping and error.code is None):
        # It was us who ended the conversation: that says nothing about the server, or the mail.
        meant = "ours"
        claims.give_back(email, Failure("Aborted", error.reply, phase=error.phase), in_doubt=in_doubt)
    elif meant == "server":
        # After others that wait, so that one mail in trouble does not take every probe.
        delay = in_doubt_delay(attempts.in_doubt(email.id)) if in_doubt else breaker.PROBE_SECONDS
        claims.give_back(
            email, Failure(outbox.SERVER_FAILURE, error.reply, error.phase, error.code), delay=delay, in_doubt=in_doubt
        )
        breaker.trip(attempts.redact(str(error)))
    elif meant == "never":
        claims.bury(email, failure)
    else:
        claims.postpone(email, failure, in_doubt=in_doubt)
    refused = attempts.last_in_a_row(REFUSALS_IN_A_ROW) if meant in {"later", "never"} else []
    # Different recipients: one person who has a mail sent again and again says nothing about the server.
    if len(outbox.recipients(refused)) == REFUSALS_IN_A_ROW:
        reason = f"{len(refused)} recipients refused in a row, at last with: {attempts.redact(str(error))}"
        backlog.forgive(refused, Failure(outbox.SERVER_FAILURE, reason), delay=breaker.PROBE_SECONDS)
        breaker.trip(reason)
    db.session.commit()
    tell = log.error if meant == "never" else log.warning
    tell(
        "email_dead" if meant == "never" else "email_deferred",
        duration=claims.held_for(email),
        meaning=meant,
        phase=error.phase,
        smtp_code=error.code,
        error=attempts.redact(error.reply),
    )


# What the recipient's server, or the content, may have a part in.
AT_THE_MAIL = {"recipient", "data", "dot"}

# Policy (x.7.x), a provider's daily limit (5.4.5), and what old servers say instead of a code.
POLICY = re.compile(
    r"(^|\s)([45]\.7\.\d+|5\.4\.5)\b|relay(ing)? (access )?denied|quota exceeded|sending limit", re.IGNORECASE
)


def meaning(error: SmtpError) -> Literal["server", "later", "never"]:
    """Return whose trouble it is: the mail server's with any mail, or this mail's, for now or for good."""
    if error.phase not in AT_THE_MAIL or error.code is None or error.code == 421 or POLICY.search(error.reply):
        return "server"
    return "later" if error.code < 500 else "never"


def in_doubt_delay(tries: int) -> float:
    return IN_DOUBT_DELAYS[tries] if tries < len(IN_DOUBT_DELAYS) else IN_DOUBT_DELAY_MAX


def worker_name() -> str:
    return f"{workers.NAME}:{threading.current_thread().name}"[:100]
