"""Sending what was promised: claim, compose, send, settle, and what each answer of the mail server means."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import structlog
from flask import current_app
from sqlalchemy.exc import OperationalError

from webapp import (
    answers,
    attempts,
    backlog,
    breaker,
    budget,
    claims,
    mails,
    outbox,
    pace,
    recovery,
    totals,
    users,
    verification,
    workers,
)
from webapp.attempts import Failure
from webapp.batches import Batch, Recent
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

# So many mails a worker sends before it takes the next hint.
ON_AND_ON = 1000

# The database may be away just when a mail was accepted; for this long its worker keeps what it knows.
SETTLE_AGAIN_SECONDS = 1.0

# Whoever waits for a turn looks so often whether it is told to stop.
WAIT_SECONDS = 1.0


class DeliveryFailed(Exception):
    """This try sent nothing; the outbox knows when the next one is. `is_servers`: any other would fail as well."""

    def __init__(self, text: str, *, is_servers: bool = False) -> None:
        self.is_servers = is_servers
        super().__init__(text)


batch = Batch()

# What this process sent: most hints come after their mail went with others, and need not ask the database.
sent_here = Recent(100_000)


def deliver(email_id: uuid.UUID, *, others: bool = False) -> None:
    """Send this mail if it is due, nobody else does, and mails may go now; and others with it, while some are due.

    Raises DeliveryFailed when this one was not sent.
    """
    limit = batch.size() if others else 1
    if not (room := _room()):
        db.session.rollback()
        return
    claimed = claims.claim(worker_name(), limit=min(limit, room), email_id=email_id)
    failure = _send_all(claimed).get(email_id)
    if others and len(claimed) == limit:
        deliver_due(ON_AND_ON)
    if failure:
        raise failure


def deliver_due(limit: int) -> int:
    """Send due mails, the most urgent first, while they may go; return how many were tried."""
    tried = 0
    while tried < limit and not mail.stopping:
        room = min(_room(), batch.size(), limit - tried)
        if not room or not (claimed := claims.claim(worker_name(), limit=room)):
            db.session.rollback()
            break
        # A failure is logged, and written down: the others go on.
        _send_all(claimed)
        tried += len(claimed)
    return tried


def probe() -> None:
    """While the breaker is open: let one due mail try the mail server, if nobody did lately."""
    if not budget.room() or not breaker.take_probe():
        db.session.rollback()
        return
    # One that nobody needs, or whose address got enough, says nothing of the server.
    while claimed := claims.claim(worker_name()):
        if tried := _send_all(claimed):
            if not any(tried.values()):
                breaker.reset(claims.claimed_at(claimed[0]))
            break
    db.session.commit()


def _room() -> int:
    """Return how many mails may be claimed now: none while the mail server is down, or too many were sent."""
    return 0 if breaker.is_open() else budget.room()


def _send_all(claimed: Sequence[OutgoingEmail]) -> dict[uuid.UUID, DeliveryFailed | None]:
    """Send mails that were claimed together, one after the other; return those that were tried, and what failed."""
    tried: dict[uuid.UUID, DeliveryFailed | None] = {}
    proofs = _choose(claimed)
    waiting = budget.admit(claimed)
    db.session.commit()
    begun = time.monotonic()
    try:
        while waiting and _wait_for_turn(waiting):
            email, *waiting = waiting
            with structlog.contextvars.bound_contextvars(**_log_fields(email)):
                try:
                    if _send(email, proofs.get(email.id)):
                        tried[email.id] = None
                except DeliveryFailed as failure:
                    tried[email.id] = failure
                    if failure.is_servers:
                        break
                except LeaseLost:
                    db.session.rollback()
                    log.warning("lease_lost")
                    totals.count(totals.FENCED_WRITES)
    finally:
        if waiting:
            claims.let_go(waiting)
    batch.note(len(tried), time.monotonic() - begun)
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


def _choose(claimed: Sequence[OutgoingEmail]) -> dict[uuid.UUID, VerifyEmail]:
    """Fix which mails these are, within the claim: a retry must not choose again. Return what each is a proof for.

    Here and not at signup is decided what a known address gets, so that signup answers everybody alike.
    """
    for email in claimed:
        if email.template == recovery.TEMPLATE and email.user_id is None:
            recovery.find_owner(email)
    proofs = verification.load([email.verify_email_id for email in claimed if email.verify_email_id])
    owners = users.verified([proof.email_key for proof in proofs.values()])
    chosen = {email.id: proofs[email.verify_email_id] for email in claimed if email.verify_email_id in proofs}
    for email in claimed:
        proof = chosen.get(email.id)
        if proof is None:
            continue
        verification.ensure_key(proof)
        if email.template is not None:
            continue
        owner = owners.get(proof.email_key)
        if owner is None:
            # The person may have chosen another language since.
            email.template, email.locale = LINK_TEMPLATES[proof.purpose], proof.user.locale
        else:
            email.template, email.locale = ACCOUNT_EXISTS_TEMPLATE, owner.locale
            # An existing account is written to at its own spelling only.
            email.to_address = owner.email
    return chosen


def _send(email: OutgoingEmail, proof: VerifyEmail | None) -> bool:
    """Return whether it was sent, or else was needless. Raises DeliveryFailed, LeaseLost."""
    if reason := _needless(email, proof):
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
        is_servers = _record_failure(email, error)
        raise DeliveryFailed(attempts.redact(str(error)), is_servers=is_servers) from error
    _settle(email, reply)
    sent_here.add(email.id)
    log.info(
        "email_sent", duration=claims.held_for(email), smtp_code=250, bytes=size, smtp_reply=attempts.redact(reply)
    )
    return True


def _wait_for_turn(waiting: Sequence[OutgoingEmail]) -> bool:
    """Wait until one more may go, by the limit of a second; the mails stay this worker's.

    Return whether it may; not when this worker is told to stop.
    """
    turn = time.monotonic() + pace.take_turn()
    while (left := turn - time.monotonic()) > 0 and not mail.stopping:
        _keep(waiting)
        time.sleep(min(left, WAIT_SECONDS))
    _keep(waiting)
    return not mail.stopping


def _keep(waiting: Sequence[OutgoingEmail]) -> None:
    """Renew the lease when less of it is left than a send may take."""
    if claims.lease_left(waiting[0]) < current_app.config["MAIL_TIMEOUT"] + FINISH_MARGIN:
        claims.renew(waiting)


def _settle(email: OutgoingEmail, reply: str) -> None:
    """Write down that the mail was accepted, and go on trying to while nobody else can have it.

    A database that is away for a moment must not make a duplicate of what was sent.
    """
    while True:
        try:
            purpose = mails.link_purpose(email)
            if email.verify_email_id and purpose:
                hand_off = verification.hand_off(email.verify_email_id, purpose)
                claims.settle(email, reply, verification.HANDED_OFF, **hand_off)
            else:
                claims.settle(email, reply)
            db.session.commit()
        except OperationalError:
            db.session.rollback()
            if claims.lease_left(email) < SETTLE_AGAIN_SECONDS or mail.stopping:
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
    elif meant == "server":
        # After others that wait, so that one mail in trouble does not take every probe.
        delay = answers.in_doubt_delay(attempts.in_doubt(email.id)) if in_doubt else breaker.PROBE_SECONDS
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


def worker_name() -> str:
    return f"{workers.NAME}:{threading.current_thread().name}"[:100]
