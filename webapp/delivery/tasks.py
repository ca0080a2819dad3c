"""The Huey task, and the hints that wake workers up."""

from __future__ import annotations

import logging
import threading
import uuid

import structlog

from webapp import counters
from webapp.delivery import worker
from webapp.delivery.batch import Tried
from webapp.delivery.failures import DeliveryFailed
from webapp.extensions import huey, mail
from webapp.queue.flask_huey import fields

log = structlog.get_logger(__name__)

# Higher goes first in Huey.
HINT_PRIORITY = 10

# How many emails a worker sends at most before it takes the next hint.
ON_AND_ON = 1000

# Whether a hint came in since a worker last looked at what is due.
woken = threading.Event()


def is_news(record: logging.LogRecord) -> bool:
    """Filter Huey's logger: a failed email has its own line, and a traceback for each would drown out the rest."""
    return not (record.exc_info and isinstance(record.exc_info[1], DeliveryFailed))


logging.getLogger("huey").addFilter(is_news)


# Queued messages hold the module, name and argument, so these never change, wherever this function lives.
@huey.task(name="deliver_email", priority=HINT_PRIORITY, __module__="webapp.tasks")
def deliver_email(email_id: str) -> None:
    """Send what is due. The hint wakes a worker up; its id tells the log which email it was for."""
    tried: Tried = {}
    woken.set()
    # Without a place this worker is free for other tasks; the worker that gives one back looks again.
    while woken.is_set() and mail.places.acquire(blocking=False):
        try:
            woken.clear()
            tried |= worker.deliver_due(ON_AND_ON, wake=deliver_later)
        finally:
            mail.places.release()
    if failure := tried.get(uuid.UUID(email_id)):
        raise failure


huey.hints.add("deliver_email")


def deliver_later(email_id: uuid.UUID, delay: float = 0) -> None:
    """Hint that this email is due in `delay` seconds. If the broker is away, the relay finds it anyway."""
    task = deliver_email.s(email_id=str(email_id), delay=delay or None)
    try:
        huey.enqueue(task)
    except Exception as error:  # noqa: BLE001 - the email is committed: no trouble of the queue may fail the request
        log.warning("hint_failed", **fields(task), error=str(error))
        counters.count(counters.HINT_FAILURES)
    else:
        log.info("enqueued task", **fields(task), task_id=task.id, delay=delay)


@huey.on_shutdown()
def hang_up() -> None:
    """Close the idle mail server connections when a worker ends."""
    mail.close()


@huey.before_stop
def finish_soon() -> None:
    """Make the workers finish their emails soon, so that none is left leased."""
    mail.stop()
