"""Emails claimed together, sent one by one. When an answer is slow, the rest are given back for other workers."""

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
from webapp.delivery import circuit_breaker, reach, send, throttle
from webapp.delivery.failures import DeliveryFailed
from webapp.delivery.throughput import batch_size, patience
from webapp.extensions import huey, mail
from webapp.outbox import address_limits, claims, due, leases
from webapp.outbox.claims import LeaseLost
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.connection import Connection
from webapp.smtp.message import Message

log = structlog.get_logger(__name__)

# A batch stops after this long; what is left of it is for any worker.
LONGEST_SECONDS = 2.0

# How often a worker that waits for its turn checks whether it was told to stop.
WAIT_SECONDS = 1.0

# Emails that were tried, by id: the failure, or None if it was sent.
Tried = dict[uuid.UUID, DeliveryFailed | None]

# Called with an email that another worker may take.
Wake = Callable[[uuid.UUID], None]


def nobody(_email_id: uuid.UUID) -> None:
    """Wake nobody: the relay will find the email."""


def allowance() -> throttle.Allowance:
    """Return how many emails may be claimed now: none while the server is left alone or a total limit is reached."""
    rests = reach.is_resting() or circuit_breaker.is_open()
    return throttle.Allowance(0) if rests else throttle.allowance()


def are_overdue(by: float = due.OVERDUE) -> bool:
    """Return whether emails that may be sent now are overdue, so that no worker is free for them. Commits."""
    now = allowance()
    found = bool(now.mails) and due.are_overdue(by, signups=now.signups)
    db.session.commit()
    return found


class Ready(NamedTuple):
    """A claimed email and its composed message."""

    email: OutgoingEmail
    message: Message


class Batch:
    def __init__(self, claimed: Sequence[OutgoingEmail], wake: Wake = nobody) -> None:
        self.claimed = claimed
        self.wake = wake
        self.begun = time.monotonic()
        self.tried: Tried = {}
        # Claimed but not tried yet: first admitted by the limits, then composed.
        self.admitted: list[OutgoingEmail] = []
        self.ready: list[Ready] = []

    def send(self) -> Tried:
        """Send the batch; return the emails that were tried, and what failed. Commits."""
        try:
            self._prepare()
            with mail.connect() as connection:
                while self.ready and self._wait_for_turn() and self._send_next(connection):
                    pass
        finally:
            if self.ready or self.admitted:
                # The error may have left an aborted transaction.
                db.session.rollback()
                self._release_rest()
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
        """Send one email; return whether to continue with the next."""
        email, message = self.ready.pop(0)
        email_id = email.id
        following = self.ready[0].message if self.ready and not throttle.interval() and not self._is_over() else None
        with self._noting(email), patience.sending():
            send.send(connection, email, message, following, self._may_go_on)
            self.tried[email_id] = None
        failure = self.tried.get(email_id)
        # An email already begun on the connection is finished: the server is waiting for it.
        return not (failure and failure.is_everybodys) and (following is not None or not self._is_over())

    def _may_go_on(self, seconds: float) -> bool:
        """Return whether to keep waiting for an answer. Either way, the rest of the batch is given back."""
        if (self._release_rest() and mail.has_place()) or not patience.is_over(seconds):
            return True
        return not are_overdue() or patience.may_wait_on(is_only=min(huey.workers, mail.pool.size) == 1)

    def _release_rest(self) -> bool:
        """Give back the emails that were not tried, and wake a worker for them; return whether there were any."""
        left = [*(email for email, _ in self.ready), *self.admitted]
        if left:
            claims.release(left)
            db.session.commit()
            self.ready.clear()
            self.admitted.clear()
            self.wake(left[0].id)
        return bool(left)

    def _is_over(self) -> bool:
        return time.monotonic() - self.begun > LONGEST_SECONDS

    def _wait_for_turn(self) -> bool:
        """Wait until the per-second limit allows one more email, and keep the leases meanwhile.

        Return whether to send it: not if this worker was told to stop.
        """
        turn = time.monotonic() + throttle.take_turn()
        while (left := turn - time.monotonic()) > 0 and not mail.stopping:
            self._keep()
            time.sleep(min(left, WAIT_SECONDS))
        self._keep()
        return not mail.stopping

    def _keep(self) -> None:
        """Renew the leases when less time is left than a send may take."""
        waiting = [email for email, _ in self.ready]
        if leases.left(waiting[0]) < current_app.config["MAIL_TIMEOUT"] + send.FINISH_MARGIN:
            claims.renew(waiting)

    @contextmanager
    def _noting(self, email: OutgoingEmail) -> Iterator[None]:
        """Note a failure of this email, and add its fields to the log lines."""
        email_id = email.id
        with structlog.contextvars.bound_contextvars(**send.log_fields(email)):
            try:
                yield
            except DeliveryFailed as failure:
                self.tried[email_id] = failure
            except LeaseLost:
                db.session.rollback()
                log.warning("lease_lost")
                counters.count(counters.FENCED_WRITES)
