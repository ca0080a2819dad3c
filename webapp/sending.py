"""Sending one mail that was claimed: which one it is, what it looks like, and what became of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import structlog
from sqlalchemy import case, func, select
from sqlalchemy.exc import SQLAlchemyError

from webapp import (
    answers,
    attempts,
    backlog,
    breaker,
    budget,
    claims,
    mails,
    outbox,
    recovery,
    verification,
)
from webapp.attempts import Failure
from webapp.extensions import db, mail
from webapp.mails import ACCOUNT_EXISTS_TEMPLATE, LINK_TEMPLATES, OWNERLESS
from webapp.message import Message
from webapp.outbox import OutgoingEmail
from webapp.phases import Aborted, Crowded, SmtpError
from webapp.users import User
from webapp.verification import VerifyEmail

log = structlog.get_logger(__name__)

# The final dot is sent only while the lease has this long left: else another worker may have the mail by then.
FINISH_MARGIN = 10.0

# Different recipients refused in a row until we believe that it is the server.
REFUSALS_IN_A_ROW = 5

# A server that wants no more connections than other workers have is theirs while it took a mail so lately; the mail
# waits for one of them.
CROWDED_SECONDS = 60.0
CROWDED_DELAY = 2.0

# The database may be away just when a mail was accepted; for this long its worker keeps what it knows.
SETTLE_AGAIN_SECONDS = 1.0

# And a worker that is told to stop for this long: with the wait for the mail server's answer, as long as it has.
STOPPING_SECONDS = 1.5


class DeliveryFailed(Exception):
    """This try sent nothing; the outbox knows when the next one is. `is_servers`: any other would fail as well."""

    def __init__(self, text: str, *, is_servers: bool = False) -> None:
        self.is_servers = is_servers
        super().__init__(text)


def which() -> claims.Fixed:
    """Return which mail it is, and what it is written in and sent to: fixed by its first claim, whatever a retry finds.

    There and not at signup is decided what a known address gets, so that signup answers everybody alike.
    """
    its_proof = VerifyEmail.id == OutgoingEmail.verify_email_id
    purpose = select(VerifyEmail.purpose).where(its_proof).scalar_subquery()
    # The person may have chosen another language since.
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
        # An existing account is written to at its own spelling only.
        "to_address": case(
            (is_open, func.coalesce(owners_address, OutgoingEmail.to_address)), else_=OutgoingEmail.to_address
        ),
    }


def proofs(claimed: Sequence[OutgoingEmail]) -> dict[uuid.UUID, VerifyEmail]:
    """Return what each claimed mail is a proof for, by the mail's id, as part of the claim."""
    for email in claimed:
        if email.template == recovery.TEMPLATE and email.user_id is None:
            recovery.find_owner(email)
    found = verification.load([email.verify_email_id for email in claimed if email.verify_email_id])
    for proof in found.values():
        verification.ensure_key(proof)
    return {email.id: found[email.verify_email_id] for email in claimed if email.verify_email_id in found}


def prepare(email: OutgoingEmail, proof: VerifyEmail | None) -> Message | None:
    """Return what to send, or nothing when that is needless. Raises DeliveryFailed, LeaseLost."""
    if reason := _needless(email, proof):
        budget.drop(email, reason)
        db.session.commit()
        log.info("email_canceled", reason=reason)
        return None
    try:
        message = mails.compose(email, proof)
        # Written here, where what goes wrong is this mail's trouble.
        _ = message.content
    except Exception as error:
        # A template, or an address that no header can hold: nothing that another worker could do better.
        claims.postpone(email, Failure("Unsendable", f"{type(error).__name__}: {error}"))
        db.session.commit()
        log.exception("email_unsendable")
        raise DeliveryFailed(f"{type(error).__name__}: {attempts.redact(str(error))}") from error
    return message


def send(email: OutgoingEmail, message: Message, following: Message | None = None) -> None:
    """Hand the mail over, and begin on the following one. Raises DeliveryFailed, LeaseLost."""
    # No transaction stays open during the conversation: what went wrong with the mail before may have left one. (A
    # rollback would expire what was read.)
    if db.session().in_transaction():
        db.session.commit()
    try:
        with mail.connect() as connection:
            reply = connection.send(
                message, may_finish=lambda: claims.lease_left(email) >= FINISH_MARGIN, following=following
            )
    except SmtpError as error:
        is_servers = _record_failure(email, error)
        raise DeliveryFailed(attempts.redact(str(error)), is_servers=is_servers) from error
    _settle(email, reply)
    log.info(
        "email_sent",
        duration=claims.held_for(email),
        smtp_code=250,
        bytes=len(message.content),
        smtp_reply=attempts.redact(reply),
    )


def _settle(email: OutgoingEmail, reply: str) -> None:
    """Write down that the mail was accepted, and go on trying to while nobody else can have it.

    A database that is away for a moment must not make a duplicate of what was sent.
    """
    accepted_at = time.monotonic()
    purpose = mails.link_purpose(email)
    handed_off = verification.hand_off(email.verify_email_id, purpose) if email.verify_email_id and purpose else {}
    while True:
        try:
            claims.settle(email, reply, verification.HANDED_OFF if handed_off else (), **handed_off)
        except SQLAlchemyError:
            db.session.rollback()
            failing_for = time.monotonic() - accepted_at
            if claims.lease_left(email) < SETTLE_AGAIN_SECONDS or (mail.stopping and failing_for > STOPPING_SECONDS):
                raise
            time.sleep(SETTLE_AGAIN_SECONDS)
        else:
            return


def _needless(email: OutgoingEmail, proof: VerifyEmail | None) -> str | None:
    """Return why nobody needs this mail any more, if so."""
    if email.user_id is None and email.template not in OWNERLESS:
        return "nobody has this address" if email.template == recovery.TEMPLATE else "its user is gone"
    if email.to_address == outbox.FORGOTTEN:
        return "its address is forgotten"
    if mails.link_purpose(email) is None:
        return None
    if proof is None:
        return "its user is gone"
    if proof.used_at is not None:
        return "verified meanwhile"
    return proof.void_reason if proof.voided_at is not None else None


def _record_failure(email: OutgoingEmail, error: SmtpError) -> bool:
    """Write down what the answer means; return whether it means that no mail may go now."""
    failure = Failure("Refused", error.reply, phase=error.phase, code=error.code)
    in_doubt = error.phase == "dot" and error.code is None
    meant: str = answers.meaning(error)
    if meant == "server" and error.phase in answers.AT_THE_MAIL and attempts.accepted_others_since(email.id):
        # The server takes others, and has trouble with this mail again: then it is this mail.
        meant = "later"
    if isinstance(error, Aborted) or (mail.stopping and error.code is None):
        # It was us who ended the conversation: that says nothing about the server, or the mail.
        meant = "ours"
        claims.give_back(email, Failure("Aborted", error.reply, phase=error.phase), in_doubt=in_doubt)
    elif isinstance(error, Crowded) and attempts.accepted_within(CROWDED_SECONDS):
        # Other workers have all connections that the server allows us, and mails go there.
        meant = "ours"
        claims.give_back(email, Failure("Crowded", error.reply, error.phase, error.code), delay=CROWDED_DELAY)
    elif meant == "server":
        # After others that wait, so that one mail in trouble does not take every probe.
        delay = answers.in_doubt_delay(attempts.in_doubt(email.id)) if in_doubt else breaker.PROBE_SECONDS
        claims.give_back(
            email, Failure(outbox.SERVER_FAILURE, error.reply, error.phase, error.code), delay=delay, in_doubt=in_doubt
        )
        breaker.trip(attempts.redact(str(error)))
        # Nobody needs them before the next probe, and the server counts them.
        mail.close()
    elif meant == "never":
        claims.bury(email, failure)
    else:
        claims.postpone(email, failure, in_doubt=in_doubt)
    refused = attempts.last_in_a_row(REFUSALS_IN_A_ROW) if meant in {"later", "never"} else []
    # Different recipients: one person who has a mail sent again and again says nothing about the server.
    is_refusing_all = len(outbox.recipients(refused)) == REFUSALS_IN_A_ROW
    if is_refusing_all:
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
    return is_refusing_all or meant in {"server", "ours"}
