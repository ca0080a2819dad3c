"""Mails that were claimed together: sent one after the other, and none waits for the answer to another."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import structlog
from flask import current_app

from webapp import counters
from webapp.db.base import db
from webapp.delivery import circuit_breaker, send, throttle
from webapp.delivery.failures import DeliveryFailed
from webapp.delivery.throughput import batch_size, patience
from webapp.extensions import huey, mail
from webapp.outbox import address_limits, claims, due, leases
from webapp.outbox.claims import LeaseLost
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.connection import Connection
from webapp.smtp.message import Message

log = structlog.get_logger(__name__)

# A batch that turns out to be slow ends after this: what is left of it is for whoever has time.
LONGEST_SECONDS = 2.0

# Whoever waits for a turn looks so often whether it is told to stop.
WAIT_SECONDS = 1.0

# What became of mails, by their ids: what failed, or nothing where they were sent.
Tried = dict[uuid.UUID, DeliveryFailed | None]

# Who is told of a mail that somebody else may take.
Wake = Callable[[uuid.UUID], None]


def nobody(_email_id: uuid.UUID) -> None:
    """Tell nobody: the relay will find it."""


def room() -> throttle.Room:
    """Return how many mails may be claimed now: none while the mail server is down, or too many were sent."""
    return throttle.Room(0) if circuit_breaker.is_open() else throttle.room()


class Ready(NamedTuple):
    """A mail, and how it is written."""

    email: OutgoingEmail
    message: Message


class Batch:
    def __init__(self, claimed: Sequence[OutgoingEmail], wake: Wake = nobody) -> None:
        self.claimed = claimed
        self.wake = wake
        self.begun = time.monotonic()
        self.tried: Tried = {}
        # What is still in this worker's hands.
        self.admitted: list[OutgoingEmail] = []
        self.ready: list[Ready] = []

    def send(self) -> Tried:
        """Return which were tried, and what failed. Commits."""
        try:
            self._prepare()
            with mail.connect() as connection:
                while self.ready and self._wait_for_turn() and self._send_next(connection):
                    pass
        finally:
            if self.ready or self.admitted:
                # What failed may have left a transaction that can do nothing more.
                db.session.rollback()
                self._let_go()
        batch_size.note(len(self.tried), time.monotonic() - self.begun)
        return self.tried

    def _prepare(self) -> None:
        self.admitted = address_limits.admit(self.claimed)
        db.session.commit()
        proofs = send.proofs(self.admitted)
        while self.admitted:
            email = self.admitted.pop(0)
            with self._noting(email):
                if message := send.prepare(email, proofs.get(email.id)):
                    self.ready.append(Ready(email, message))

    def _send_next(self, connection: Connection) -> bool:
        """Send one; return whether the next one may follow."""
        email, message = self.ready.pop(0)
        email_id = email.id
        following = self.ready[0].message if self.ready and not throttle.interval() and not self._is_over() else None
        with self._noting(email), patience.sending():
            send.send(connection, email, message, following, self._may_go_on)
            self.tried[email_id] = None
        failure = self.tried.get(email_id)
        # What was begun is finished: the server waits for it.
        return not (failure and failure.is_everybodys) and (following is not None or not self._is_over())

    def _may_go_on(self, seconds: float) -> bool:
        """Return whether to wait on for an answer; what is left of the batch is for others in any case."""
        if (self._let_go() and mail.has_place()) or not patience.is_over(seconds):
            return True
        now = room()
        db.session.commit()
        if not now.mails or not due.are_overdue(signups=now.signups):
            return True
        return patience.may_wait_on(is_only=min(huey.workers, mail.pool.size) == 1)

    def _let_go(self) -> bool:
        """Give back what was not tried, for whoever has time; return whether there was any."""
        left = [*(email for email, _ in self.ready), *self.admitted]
        if left:
            claims.let_go(left)
            self.ready.clear()
            self.admitted.clear()
            self.wake(left[0].id)
        return bool(left)

    def _is_over(self) -> bool:
        return time.monotonic() - self.begun > LONGEST_SECONDS

    def _wait_for_turn(self) -> bool:
        """Wait until one more may go, by the limit of a second; the mails stay this worker's.

        Return whether it may; not when this worker is told to stop.
        """
        turn = time.monotonic() + throttle.take_turn()
        while (left := turn - time.monotonic()) > 0 and not mail.stopping:
            self._keep()
            time.sleep(min(left, WAIT_SECONDS))
        self._keep()
        return not mail.stopping

    def _keep(self) -> None:
        """Renew the lease when less of it is left than a send may take."""
        waiting = [email for email, _ in self.ready]
        if leases.left(waiting[0]) < current_app.config["MAIL_TIMEOUT"] + send.FINISH_MARGIN:
            claims.renew(waiting)

    @contextmanager
    def _noting(self, email: OutgoingEmail) -> Iterator[None]:
        """Note what fails with the mail, and tell its log lines apart."""
        email_id = email.id
        former = structlog.contextvars.bind_contextvars(**send.log_fields(email))
        try:
            yield
        except DeliveryFailed as failure:
            self.tried[email_id] = failure
        except LeaseLost:
            db.session.rollback()
            log.warning("lease_lost")
            counters.count(counters.FENCED_WRITES)
        finally:
            structlog.contextvars.reset_contextvars(**former)
