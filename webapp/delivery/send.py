"""Sending one claimed email: which one it is, what it looks like, and what became of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import case, func, select
from sqlalchemy.exc import SQLAlchemyError

from webapp.accounts import links, password_change
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import ticks
from webapp.delivery import failures, reach
from webapp.delivery.failures import DeliveryFailed, PutAside
from webapp.emails import render
from webapp.extensions import mail
from webapp.outbox import attempts, claims, kinds, leases, outcomes, outgoing_email
from webapp.outbox.attempts import Failure
from webapp.outbox.kinds import ACCOUNT_EXISTS_TEMPLATE, LINK_TEMPLATES, OWNERLESS
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.connection import Connection
from webapp.smtp.message import Message

log = structlog.get_logger(__name__)

# The final dot is sent only while this much of the lease is left: otherwise another worker may have the email by then.
FINISH_MARGIN = 10.0

# If the database is away when an email was accepted, the worker tries to record it this often, while its lease lasts.
SETTLE_AGAIN_SECONDS = 1.0

# A worker that was told to stop tries for this long: with the wait for the mail server's answer, all the time it has.
STOPPING_SECONDS = 1.5


def recipient_values() -> claims.ExtraValues:
    """Return the SQL for an email's template, language and address: the first claim sets them, and retries keep them.

    The claim rather than signup decides what a known address gets, so that signup answers everyone alike.
    """
    its_proof = VerifyEmail.id == OutgoingEmail.verify_email_id
    purpose = select(VerifyEmail.purpose).where(its_proof).scalar_subquery()
    # The person may have switched languages since.
    language = select(User.locale).join(VerifyEmail, VerifyEmail.user_id == User.id).where(its_proof)
    owner = (
        select(User.id)
        .join(VerifyEmail, VerifyEmail.email_key == User.email_key)
        .where(its_proof, User.email_verified_at.is_not(None))
    )
    owners_language, owners_address = (
        owner.with_only_columns(column).scalar_subquery() for column in (User.locale, User.email)
    )
    is_open = OutgoingEmail.template.is_(None) & OutgoingEmail.verify_email_id.is_not(None)
    return {
        "template": case(
            (~is_open, OutgoingEmail.template),
            (owner.exists(), ACCOUNT_EXISTS_TEMPLATE),
            else_=case(LINK_TEMPLATES, value=purpose),
        ),
        "locale": case(
            (is_open, func.coalesce(owners_language, language.scalar_subquery())), else_=OutgoingEmail.locale
        ),
        # An existing account is emailed only at its own spelling of the address.
        "to_address": case(
            (is_open, func.coalesce(owners_address, OutgoingEmail.to_address)), else_=OutgoingEmail.to_address
        ),
    }


def proofs(claimed: Sequence[OutgoingEmail]) -> dict[uuid.UUID, VerifyEmail]:
    """Return the proof that each claimed email carries, by the email's id. Commits.

    Separate from the claim, which must never wait: deleting an account locks its user, then waits for its emails.
    """
    for email in claimed:
        if email.template == kinds.RESET_TEMPLATE and email.user_id is None:
            password_change.find_owner(email)
    found = links.load([email.verify_email_id for email in claimed if email.verify_email_id])
    for proof in found.values():
        links.ensure_key(proof)
    db.session.commit()
    return {email.id: found[email.verify_email_id] for email in claimed if email.verify_email_id in found}


def prepare(email: OutgoingEmail, proof: VerifyEmail | None) -> Message | None:
    """Return the message to send, or None if nobody needs it any more. Raises DeliveryFailed, LeaseLost."""
    if reason := _needless(email, proof):
        outcomes.cancel(email, reason)
        db.session.commit()
        log.info("email_canceled", reason=reason)
        return None
    try:
        message = render.compose(email, proof)
        # Built here, where an error fails this email alone.
        _ = message.content
    except Exception as error:
        # A broken template, or an address that no header can hold: no other worker could do better.
        outcomes.postpone(email, Failure("Unsendable", f"{type(error).__name__}: {error}"))
        db.session.commit()
        log.exception("email_unsendable")
        failures.tell_if_dead(email, meaning="unsendable")
        raise DeliveryFailed(f"{type(error).__name__}: {attempts.redact(str(error))}", "unsendable") from error
    return message


def send(
    connection: Connection,
    email: OutgoingEmail,
    message: Message,
    following: Message | None,
    may_go_on: Callable[[float], bool],
) -> None:
    """Hand the email over, and begin the following one. Raises DeliveryFailed, LeaseLost.

    `may_go_on` is asked each second whether to keep waiting, with the seconds so far. After the final dot its answer
    is ignored, since giving up there may make a duplicate.
    """
    # No transaction stays open during the conversation; a failure of the previous email may have left one. (A rollback
    # would expire the rows that were read.)
    if db.session().in_transaction():
        db.session.commit()
    is_past_dot = False
    # Others of its batch may have come first.
    email.begun_ticks = ticks()

    def may_finish() -> bool:
        nonlocal is_past_dot
        is_past_dot = leases.left(email) >= FINISH_MARGIN
        return is_past_dot

    def while_waiting(seconds: float) -> None:
        try:
            if not may_go_on(seconds) and not is_past_dot:
                raise PutAside
            if is_past_dot:
                claims.renew([email])
        except SQLAlchemyError:
            # The conversation continues without the database; the lease decides whether it may finish.
            db.session.rollback()

    try:
        reply = connection.send(message, may_finish=may_finish, while_waiting=while_waiting, following=following)
    except Exception as error:
        raise failures.record(email, error, is_past_dot=is_past_dot) from error
    reach.note_success()
    _settle(email, reply)
    log.info(
        "email_sent",
        duration=leases.tried_for(email),
        smtp_code=250,
        bytes=len(message.content),
        smtp_reply=attempts.redact(reply),
    )


def _settle(email: OutgoingEmail, reply: str) -> None:
    """Record that the email was accepted, and retry while the lease lasts.

    A short database outage must not cause a duplicate.
    """
    accepted_at = time.monotonic()
    purpose = render.link_purpose(email)
    lives = links.hand_off(purpose) if email.verify_email_id and purpose else {}
    while True:
        try:
            outcomes.settle(email, reply, **lives)
        except SQLAlchemyError:
            db.session.rollback()
            failing_for = time.monotonic() - accepted_at
            if leases.left(email) < SETTLE_AGAIN_SECONDS or (mail.stopping and failing_for > STOPPING_SECONDS):
                raise
            time.sleep(SETTLE_AGAIN_SECONDS)
        else:
            return


def _needless(email: OutgoingEmail, proof: VerifyEmail | None) -> str | None:
    """Return why nobody needs this email any more, or None."""
    if email.user_id is None and email.template not in OWNERLESS:
        return "no account has this address" if email.template == kinds.RESET_TEMPLATE else "its user was deleted"
    if email.to_address == outgoing_email.FORGOTTEN:
        return "its address was deleted"
    if render.link_purpose(email) is None:
        return None
    if proof is None:
        return "its user was deleted"
    if proof.used_at is not None:
        return "already verified"
    return proof.void_reason if proof.voided_at is not None else None


def log_fields(email: OutgoingEmail) -> dict[str, Any]:
    """Return the fields that identify an email in the log, from the request that promised it onward."""
    fields = {
        "email_id": str(email.id),
        "user_id": email.user_id,
        "request_id": email.request_id,
        "attempt": email.attempts + 1,
    }
    return fields | ({"to_address": email.to_address} if current_app.config["LOG_ADDRESSES"] else {})
