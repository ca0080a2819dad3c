"""Which mails go now: those that are due, in batches, while mails may go at all."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import structlog
from flask import current_app

from webapp import breaker, budget, claims, pace, sending, totals, workers
from webapp.batches import BATCH_LONGEST, Batch, Lanes, Recent
from webapp.claims import LeaseLost
from webapp.extensions import db, mail
from webapp.message import Message
from webapp.outbox import OutgoingEmail
from webapp.sending import DeliveryFailed

log = structlog.get_logger(__name__)

# So many mails a worker sends before it takes the next hint.
ON_AND_ON = 1000

# For so long hints of what was sent are needless.
FORGET_SECONDS = 20.0

# Whoever waits for a turn looks so often whether it is told to stop.
WAIT_SECONDS = 1.0

# What became of mails, by their ids: what failed, or nothing where they were sent.
Tried = dict[uuid.UUID, DeliveryFailed | None]

batch = Batch()
# Who has no connection holds mails that others could send.
lanes = Lanes(most=lambda: mail.pool.size)

# What this process sent, or has in its hands: most hints come when their mail goes with others, and need not ask the
# database. What it gives back gets another hint.
taken_here = Recent(100_000)


class Ready(NamedTuple):
    """A mail, and how it is written."""

    email: OutgoingEmail
    message: Message


def deliver(email_id: uuid.UUID, *, others: bool = False) -> None:
    """Send this mail if it is due, nobody else does, and mails may go now; and others with it, while some are due.

    Raises DeliveryFailed when this one was not sent.
    """
    limit = batch.size() if others else 1
    if not (room := _room()):
        db.session.commit()
        return
    claimed = _claim(min(limit, room), email_id)
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
        if not room or not (claimed := _claim(room)):
            # Psycopg forgets its prepared statements at a rollback.
            db.session.commit()
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
    while claimed := _claim(1):
        if tried := _send_all(claimed):
            if not any(tried.values()):
                breaker.reset(claims.claimed_at(claimed[0]))
            break
    db.session.commit()


def _room() -> int:
    """Return how many mails may be claimed now: none while the mail server is down, or too many were sent."""
    return 0 if breaker.is_open() else budget.room()


def _claim(limit: int, email_id: uuid.UUID | None = None) -> Sequence[OutgoingEmail]:
    return claims.claim(worker_name(), limit=limit, email_id=email_id, fixing=sending.which)


def _send_all(claimed: Sequence[OutgoingEmail]) -> Tried:
    """Send mails that were claimed together, one after the other; return those that were tried, and what failed."""
    tried: Tried = {}
    # What is not sent may be due again before the others are done: its hint must be heard then.
    unsent = {email.id for email in claimed}
    for email in claimed:
        taken_here.add(email.id, seconds=claims.lease_left(email))
    admitted: list[OutgoingEmail] = []
    ready: list[Ready] = []
    begun = time.monotonic()
    try:
        proofs = sending.proofs(claimed)
        admitted = budget.admit(claimed)
        db.session.commit()
        while admitted:
            email, *admitted = admitted
            with _noting(email, tried):
                if message := sending.prepare(email, proofs.get(email.id)):
                    ready.append(Ready(email, message))
        taken_here.discard(unsent.difference(email.id for email, _ in ready))
        while ready and _wait_for_turn([email for email, _ in ready]):
            (email, message), *ready = ready
            email_id = email.id
            following = _following(ready, begun)
            with _noting(email, tried):
                sending.send(email, message, following=following)
                tried[email_id] = None
                unsent.remove(email_id)
                # Not for ever: a database that failed over may not know of it.
                taken_here.add(email_id, seconds=FORGET_SECONDS)
            if email_id in unsent:
                taken_here.discard([email_id])
            failure = tried.get(email_id)
            # What was begun is finished: the server waits for it.
            if (failure and failure.is_servers) or (not following and _is_over(begun)):
                break
    finally:
        taken_here.discard(unsent)
        if left := [*(email for email, _ in ready), *admitted]:
            # It may have been begun on one of them.
            mail.close()
            # What failed may have left a transaction that can do nothing more.
            db.session.rollback()
            claims.let_go(left)
    batch.note(len(tried), time.monotonic() - begun)
    return tried


@contextmanager
def _noting(email: OutgoingEmail, tried: Tried) -> Iterator[None]:
    """Note what fails with the mail, and tell its log lines apart."""
    email_id = email.id
    former = structlog.contextvars.bind_contextvars(**_log_fields(email))
    try:
        yield
    except DeliveryFailed as failure:
        tried[email_id] = failure
    except LeaseLost:
        db.session.rollback()
        log.warning("lease_lost")
        totals.count(totals.FENCED_WRITES)
    finally:
        structlog.contextvars.reset_contextvars(**former)


def _following(ready: Sequence[Ready], begun: float) -> Message | None:
    """Return what goes right after this mail, if anything does."""
    return ready[0].message if ready and not pace.interval() and not _is_over(begun) else None


def _is_over(begun: float) -> bool:
    return time.monotonic() - begun > BATCH_LONGEST


def _log_fields(email: OutgoingEmail) -> dict[str, Any]:
    """Return what tells a mail's log lines apart, from the request that promised it on."""
    fields = {
        "email_id": str(email.id),
        "user_id": email.user_id,
        "request_id": email.request_id,
        "attempt": email.attempts + 1,
    }
    return fields | ({"to_address": email.to_address} if current_app.config["LOG_ADDRESSES"] else {})


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
    if claims.lease_left(waiting[0]) < current_app.config["MAIL_TIMEOUT"] + sending.FINISH_MARGIN:
        claims.renew(waiting)


def worker_name() -> str:
    return f"{workers.NAME}:{threading.current_thread().name}"[:100]
