"""The relay: what each consumer runs beside its workers, so that a lost hint does not matter."""

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
from webapp.accounts.second_factor import factor
from webapp.db import schema
from webapp.db.base import db
from webapp.db.outages import DatabaseAway
from webapp.delivery import circuit_breaker, heartbeats, reach, throttle, worker
from webapp.delivery.batch import are_overdue
from webapp.delivery.tasks import deliver_email
from webapp.delivery.throughput import batch_size
from webapp.extensions import huey, mail
from webapp.outbox import due, pause, reaper
from webapp.queue.broker_breaker import BrokerDown

log = structlog.get_logger(__name__)

# An email due at once was hinted when it was promised; the relay hints it again after it has waited OVERDUE seconds.
# All others it hints as soon as they are due, since Huey reads its schedule only once a second.
OVERDUE = 1.0
LONGEST_SLEEP = 2.0
SHORTEST_SLEEP = 0.1

# How often each consumer prunes; two that do so at once skip each other's rows.
PRUNE_SECONDS = 3600.0

# With this many hints in the queue the relay adds none: a worker that takes one keeps sending while emails are due.
QUEUE_MAX = 20
BATCH = 100

# An email that no worker took for this long, although it was hinted and a connection is free, is sent from here.
UNHEARD = 10.0


@huey.companion
def relay(stopped: threading.Event) -> None:
    """Run until stopped: take emails back from dead workers, and make sure that each due email is sent."""
    Relay().run(stopped)


@dataclass
class Job:
    """A recurring job of the relay; `do` returns in how many seconds it should run again."""

    do: Callable[[], float]
    due_at: float = 0.0


class Relay:
    """Runs each job separately, so that one that fails does not stop the others."""

    def __init__(self) -> None:
        # Spread out, since many consumers may have been started together.
        first_prune = time.monotonic() + random.uniform(60, PRUNE_SECONDS)  # noqa: S311 - no secret  # nosec B311
        # Emails come first.
        mails = [Job(reap), Job(sweep), Job(mend_times)]
        rare = [Job(mask_anew, first_prune), Job(prune, first_prune)]
        self.jobs = [Job(find_tables), *mails, Job(beat), Job(fill_in_keys), Job(count), *rare]

    def run(self, stopped: threading.Event) -> None:
        seconds = 0.0
        while not stopped.wait(seconds):
            seconds = self.turn()
        with huey.app.app_context():
            self.leave()
        mail.close()

    def turn(self) -> float:
        """Run the jobs that are due; return for how many seconds none will be."""
        for job in self.jobs:
            if time.monotonic() < job.due_at:
                continue
            try:
                # Leaving the context ends the job's transaction; if that fails, it is this job's failure too.
                with huey.app.app_context():
                    seconds = job.do()
            except DatabaseAway:
                # The outage is logged already, and the other jobs need the database too.
                return LONGEST_SLEEP
            except Exception as error:
                # Whatever one email broke, the relay keeps going for the others.
                log.exception("relay_failed", job=job.do.__name__, error=type(error).__name__)
                seconds = LONGEST_SLEEP
            job.due_at = time.monotonic() + seconds
        return max(0.0, min(job.due_at for job in self.jobs) - time.monotonic())

    def leave(self) -> None:
        try:
            heartbeats.leave(heartbeats.NAME)
            db.session.commit()
        except SQLAlchemyError:
            log.warning("heartbeat_left")


def find_tables() -> float:
    """Keep the other jobs from running until the database has the tables that this build needs."""
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


def mask_anew() -> float:
    factor.mask_anew()
    db.session.commit()
    return PRUNE_SECONDS


def prune() -> float:
    # One batch a turn, so that no email waits for it.
    return 0.0 if retention.prune_batch() else PRUNE_SECONDS


def sweep() -> float:
    """Make sure that each due email is sent; return in how many seconds to look again."""
    next_due = due.seconds_to_next()
    if next_due is None or next_due > 0:
        db.session.commit()
        return LONGEST_SLEEP if next_due is None else min(LONGEST_SLEEP, max(SHORTEST_SLEEP, next_due))
    if pause.is_paused():
        db.session.commit()
        return LONGEST_SLEEP
    if circuit_breaker.is_open() or reach.is_resting():
        may_probe = reach.may_probe()
        db.session.commit()
        if may_probe:
            worker.probe()
        return LONGEST_SLEEP / 2
    try:
        waiting = huey.hints_waiting(QUEUE_MAX)
        # All workers are busy with tasks of your own.
        if waiting and are_overdue(by=UNHEARD) and send_batch():
            return 0.0
        if waiting >= QUEUE_MAX:
            db.session.commit()
            return LONGEST_SLEEP / 2
        has_place = mail.has_place()
        # With all places taken here, workers drop a hint at once: one is for other consumers.
        if hint(waiting, QUEUE_MAX if has_place else 1):
            return SHORTEST_SLEEP if has_place else LONGEST_SLEEP / 2
    except BrokerDown:
        # Workers get no messages now.
        if send_batch():
            return 0.0
    return LONGEST_SLEEP / 2 if throttle.spent() else SHORTEST_SLEEP


def send_batch() -> int:
    """Send a batch of due emails from here, if a connection is free; return how many were tried."""
    if not mail.places.acquire(blocking=False):
        return 0
    try:
        return len(worker.deliver_due(batch_size.now()))
    finally:
        mail.places.release()


def hint(waiting: int, most: int = QUEUE_MAX) -> int:
    """Queue up to `most` hints for due emails, less the `waiting` ones; return how many were due. Raises BrokerDown."""
    # Close to a total limit signups' emails wait, and at the limit all do.
    may_go = throttle.allowance()
    if not may_go.mails:
        db.session.commit()
        return 0
    email_ids = due.to_hint(BATCH, overdue=OVERDUE, signups=may_go.signups)
    db.session.commit()
    # One hint a batch is enough: any hint wakes a worker up, and it sends a whole batch.
    for email_id in email_ids[:: batch_size.now()][waiting:most]:
        huey.enqueue(deliver_email.s(email_id=str(email_id)))
    return len(email_ids)
