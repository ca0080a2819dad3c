"""Which mails go now: those that are due, in batches, while mails may go at all."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

import structlog
from flask import current_app

from webapp import counters
from webapp.db.base import db
from webapp.delivery import circuit_breaker, send, throttle
from webapp.delivery.failures import DeliveryFailed
from webapp.delivery.heartbeats import worker_name
from webapp.delivery.send import log_fields
from webapp.delivery.throughput import BATCH_LONGEST, Batch, Patience
from webapp.extensions import huey, mail
from webapp.outbox import address_limits, claims, due, leases
from webapp.outbox.claims import LeaseLost
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.message import Message

log = structlog.get_logger(__name__)

# Whoever waits for a turn looks so often whether it is told to stop.
WAIT_SECONDS = 1.0

# What became of mails, by their ids: what failed, or nothing where they were sent.
Tried = dict[uuid.UUID, DeliveryFailed | None]

# Who is told of a mail that somebody else may take.
Wake = Callable[[uuid.UUID], None]

batch = Batch()
patience = Patience()


def nobody(_email_id: uuid.UUID) -> None:
    """Tell nobody: the relay will find it."""


class Ready(NamedTuple):
    """A mail, and how it is written."""

    email: OutgoingEmail
    message: Message


def deliver(email_id: uuid.UUID) -> None:
    """Send this mail if it is due, nobody else does, and mails may go now. Raises DeliveryFailed."""
    room = _room()
    claimed = _claim(room, 1, email_id) if room.mails else []
    db.session.commit()
    if failure := _send_all(claimed).get(email_id):
        raise failure


def deliver_due(limit: int, wake: Wake = nobody) -> Tried:
    """Send due mails, the most urgent first, while they may go; return those that were tried.

    `wake` is called with a mail that somebody else may take. After one whose answer does not come, what came last goes
    next: whoever asked for that looks at the page, and behind many that will not be answered either it would wait for
    all of them.
    """
    tried: Tried = {}
    newest = False
    while len(tried) < limit and not mail.stopping and (room := _room()).mails:
        size = min(batch.size(), limit - len(tried))
        claimed = (_claim(room, size, order="newest") if newest else []) or _claim(room, size)
        # A failure is logged, and written down: the others go on.
        last = _send_all(claimed, wake)
        if not claimed:
            break
        newest = _are_slow(last)
        tried |= last
    # Psycopg forgets its prepared statements at a rollback.
    db.session.commit()
    return tried


def _are_slow(tried: Tried) -> bool:
    return any(failure and failure.meaning in {"slow", "silence", "doubt"} for failure in tried.values())


def probe() -> None:
    """While the breaker is open: let one due mail try the mail server, if nobody did lately.

    The newest that was never refused: another may be refused for reasons of its own.
    """
    room = throttle.room()
    if not room.mails or not circuit_breaker.take_probe():
        db.session.rollback()
        return
    while claimed := _claim(room, 1, order="newest") or _claim(room, 1):
        tried = _send_all(claimed)
        # One that nobody needs, that cannot be written, or whose mailbox got enough, says nothing of the server.
        if any(failure is None or failure.meaning != "unsendable" for failure in tried.values()):
            if all(failure is None or failure.is_answer for failure in tried.values()):
                circuit_breaker.reset(leases.claimed_at(claimed[0]))
            break
    db.session.commit()


def _room() -> throttle.Room:
    """Return how many mails may be claimed now: none while the mail server is down, or too many were sent."""
    return throttle.Room(0) if circuit_breaker.is_open() else throttle.room()


def _claim(
    room: throttle.Room,
    limit: int,
    email_id: uuid.UUID | None = None,
    *,
    order: due.Order = "urgent",
) -> Sequence[OutgoingEmail]:
    return claims.claim(
        worker_name(),
        limit=min(limit, room.mails),
        email_id=email_id,
        order=order,
        signups=room.signups,
        fixing=send.which,
    )


def _send_all(claimed: Sequence[OutgoingEmail], wake: Wake = nobody) -> Tried:
    """Send mails that were claimed together, one after the other; return those that were tried, and what failed."""
    tried: Tried = {}
    if not claimed:
        db.session.commit()
        return tried
    hand = Hand(wake)
    begun = time.monotonic()
    try:
        hand.admitted = address_limits.admit(claimed)
        db.session.commit()
        proofs = send.proofs(hand.admitted)
        while hand.admitted:
            email = hand.admitted.pop(0)
            with _noting(email, tried):
                if message := send.prepare(email, proofs.get(email.id)):
                    hand.ready.append(Ready(email, message))
        with mail.connect() as connection:
            while hand.ready and _wait_for_turn([email for email, _ in hand.ready]):
                email, message = hand.ready.pop(0)
                email_id = email.id
                following = _following(hand.ready, begun)
                with _noting(email, tried), Waiting(hand) as waiting:
                    send.send(connection, email, message, following, waiting.may_go_on)
                    patience.note(time.monotonic() - waiting.begun)
                    tried[email_id] = None
                failure = tried.get(email_id)
                # What was begun is finished: the server waits for it.
                if (failure and failure.is_everybodys) or (not following and _is_over(begun)):
                    break
    finally:
        if hand.ready or hand.admitted:
            # What failed may have left a transaction that can do nothing more.
            db.session.rollback()
            hand.let_go()
    batch.note(len(tried), time.monotonic() - begun)
    return tried


class Hand:
    """The mails of a batch that were not tried yet."""

    def __init__(self, wake: Wake) -> None:
        self.wake = wake
        self.admitted: list[OutgoingEmail] = []
        self.ready: list[Ready] = []

    def let_go(self) -> None:
        """Give them back for whoever has time."""
        left = [*(email for email, _ in self.ready), *self.admitted]
        if left:
            claims.let_go(left)
            self.ready.clear()
            self.admitted.clear()
            self.wake(left[0].id)


class Waiting:
    """A worker's wait for the answer to one mail, with which no other mail shall wait."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self.hears_out = False

    def __enter__(self) -> Self:
        self.begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self.hears_out:
            patience.heard_out()

    def may_go_on(self, seconds: float) -> bool:
        """Return whether to wait on, after so many seconds; the rest of the batch is given back in any case."""
        self.hand.let_go()
        if self.hears_out or not patience.is_over(seconds):
            return True
        room = _room()
        db.session.commit()
        if not room.mails or not due.are_overdue(signups=room.signups):
            return True
        self.hears_out = patience.hear_out(is_only=min(huey.workers, mail.pool.size) == 1)
        return self.hears_out


@contextmanager
def _noting(email: OutgoingEmail, tried: Tried) -> Iterator[None]:
    """Note what fails with the mail, and tell its log lines apart."""
    email_id = email.id
    former = structlog.contextvars.bind_contextvars(**log_fields(email))
    try:
        yield
    except DeliveryFailed as failure:
        tried[email_id] = failure
    except LeaseLost:
        db.session.rollback()
        log.warning("lease_lost")
        counters.count(counters.FENCED_WRITES)
    finally:
        structlog.contextvars.reset_contextvars(**former)


def _following(ready: Sequence[Ready], begun: float) -> Message | None:
    """Return what goes right after this mail, if anything does."""
    return ready[0].message if ready and not throttle.interval() and not _is_over(begun) else None


def _is_over(begun: float) -> bool:
    return time.monotonic() - begun > BATCH_LONGEST


def _wait_for_turn(waiting: Sequence[OutgoingEmail]) -> bool:
    """Wait until one more may go, by the limit of a second; the mails stay this worker's.

    Return whether it may; not when this worker is told to stop.
    """
    turn = time.monotonic() + throttle.take_turn()
    while (left := turn - time.monotonic()) > 0 and not mail.stopping:
        _keep(waiting)
        time.sleep(min(left, WAIT_SECONDS))
    _keep(waiting)
    return not mail.stopping


def _keep(waiting: Sequence[OutgoingEmail]) -> None:
    """Renew the lease when less of it is left than a send may take."""
    if leases.left(waiting[0]) < current_app.config["MAIL_TIMEOUT"] + send.FINISH_MARGIN:
        claims.renew(waiting)
