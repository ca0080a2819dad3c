"""The relay: what each consumer does beside its workers, so that no lost hint matters."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy.exc import SQLAlchemyError

from webapp import counters, retention
from webapp.accounts import users
from webapp.db import schema
from webapp.db.base import db
from webapp.db.outages import DatabaseAway
from webapp.delivery import circuit_breaker, heartbeats, throttle, worker
from webapp.delivery.tasks import deliver_email
from webapp.delivery.throughput import batch_size
from webapp.extensions import huey, mail
from webapp.outbox import due, pause, reaper
from webapp.queue.broker_breaker import BrokerDown

log = structlog.get_logger(__name__)

# A mail that is due at once was hinted by whoever promised it: the relay does so when it waits for OVERDUE seconds.
# All others it hints when they are due, since Huey looks at what it scheduled once a second.
OVERDUE = 1.0
LONGEST_SLEEP = 2.0
SHORTEST_SLEEP = 0.1

# Each consumer forgets what is old once in so long; two that do so at once skip each other's rows.
PRUNE_SECONDS = 3600.0

# With so many hints in the queue the relay adds none: whoever takes one goes on while mails are due.
QUEUE_MAX = 20
BATCH = 100


@huey.companion
def relay(stopped: threading.Event) -> None:
    """Until it is stopped: take over from dead workers, and see to it that each due mail is sent."""
    Relay().run(stopped)


@dataclass
class Job:
    """One thing that the relay does again and again; `do` returns in how many seconds it is to be done next."""

    do: Callable[[], float]
    due_at: float = 0.0


class Relay:
    """Does each job by itself, so that one that fails, or waits in vain, stops no other."""

    def __init__(self) -> None:
        # Not all forget at once: many consumers may have been started together.
        first_prune = time.monotonic() + random.uniform(60, PRUNE_SECONDS)  # noqa: S311 - no secret  # nosec B311
        # Mails go first.
        mails = [Job(reap), Job(sweep), Job(mend_times)]
        self.jobs = [Job(find_tables), *mails, Job(beat), Job(fill_in_keys), Job(count), Job(prune, first_prune)]

    def run(self, stopped: threading.Event) -> None:
        seconds = 0.0
        while not stopped.wait(seconds):
            with huey.app.app_context():
                seconds = self.turn()
        with huey.app.app_context():
            self.leave()
        mail.close()

    def turn(self) -> float:
        """Do what is due; return for how many seconds nothing will be."""
        for job in self.jobs:
            if time.monotonic() < job.due_at:
                continue
            try:
                seconds = job.do()
            except DatabaseAway:
                # It has been told, and the other jobs would ask it too.
                return LONGEST_SLEEP
            except Exception as error:
                # Whatever one mail did to it, the relay is there for the others.
                log.exception("relay_failed", job=job.do.__name__, error=type(error).__name__)
                seconds = LONGEST_SLEEP
            finally:
                db.session.rollback()
            job.due_at = time.monotonic() + seconds
        return max(0.0, min(job.due_at for job in self.jobs) - time.monotonic())

    def leave(self) -> None:
        try:
            heartbeats.leave(heartbeats.NAME)
            db.session.commit()
        except SQLAlchemyError:
            log.warning("heartbeat_left")


def find_tables() -> float:
    """Let nothing else begin before the database has all that this build needs."""
    schema.check()
    return heartbeats.BEAT_SECONDS


def reap() -> float:
    reaper.reap()
    db.session.commit()
    return LONGEST_SLEEP / 2


def mend_times() -> float:
    reaper.mend_times()
    db.session.commit()
    return heartbeats.BEAT_SECONDS


def beat() -> float:
    heartbeats.beat(heartbeats.NAME)
    db.session.commit()
    return heartbeats.BEAT_SECONDS


def fill_in_keys() -> float:
    users.fill_in_keys()
    db.session.commit()
    return heartbeats.BEAT_SECONDS


def count() -> float:
    return 0.0 if counters.fold() else heartbeats.BEAT_SECONDS


def prune() -> float:
    # A batch a turn, so that no mail waits for it.
    return 0.0 if retention.prune_batch() else PRUNE_SECONDS


def sweep() -> float:
    """See to it that each due mail is sent; return for how many seconds none will be due."""
    if pause.is_paused():
        db.session.commit()
        return LONGEST_SLEEP
    if circuit_breaker.is_open():
        db.session.commit()
        worker.probe()
        return LONGEST_SLEEP / 2
    try:
        if (waiting := huey.hints_waiting(QUEUE_MAX)) >= QUEUE_MAX:
            db.session.commit()
            return LONGEST_SLEEP / 2
        hinted = hint(waiting)
    except BrokerDown:
        # Workers get no messages then: what is due is sent from here.
        hinted = len(worker.deliver_due(BATCH))
    if hinted:
        return SHORTEST_SLEEP
    next_due = due.seconds_to_next()
    db.session.commit()
    if throttle.spent():
        return LONGEST_SLEEP / 2
    return LONGEST_SLEEP if next_due is None else min(LONGEST_SLEEP, max(SHORTEST_SLEEP, next_due))


def hint(waiting: int) -> int:
    """Wake workers up for overdue mails, unless so many hints wait already; return for how many. Raises BrokerDown."""
    # Over a limit in all, signups' mails wait, and then all do.
    may_go = throttle.room()
    if not may_go.mails:
        db.session.commit()
        return 0
    email_ids = due.to_hint(BATCH, overdue=OVERDUE, signups=may_go.signups)
    db.session.commit()
    # A worker takes others with the mail of its hint, and any hint wakes one up.
    for email_id in email_ids[:: batch_size.now()][waiting:QUEUE_MAX]:
        huey.enqueue(deliver_email.s(email_id=str(email_id)))
    return len(email_ids)
