"""The Huey tasks, and the hints that wake them."""

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
from webapp.queue.broker_breaker import BrokerDown
from webapp.queue.flask_huey import payload

log = structlog.get_logger(__name__)

# Higher goes first in Huey.
HINT_PRIORITY = 10

# So many emails a worker sends before it takes the next hint.
ON_AND_ON = 1000

# Whether somebody was woken up since the last look at what is due.
woken = threading.Event()


def is_news(record: logging.LogRecord) -> bool:
    """Filter Huey's logger: an email that failed has its line, and a traceback to each would bury all others."""
    return not (record.exc_info and isinstance(record.exc_info[1], DeliveryFailed))


logging.getLogger("huey").addFilter(is_news)


# The module, the name and the argument are what old messages hold: they never change, wherever this stands.
@huey.task(name="deliver_email", priority=HINT_PRIORITY, __module__="webapp.tasks")
def deliver_email(email_id: str) -> None:
    """Send what is due: the hint wakes a worker up, and its id says in the log which email it was given for."""
    tried: Tried = {}
    woken.set()
    # Without a place this worker is free for other tasks: whoever gives one back looks once more.
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
    """Hint that this mail is due in `delay` seconds. Without a broker the relay finds it all the same."""
    task = deliver_email.s(email_id=str(email_id), delay=delay or None)
    try:
        huey.enqueue(task)
    except BrokerDown as error:
        log.warning("hint_failed", task=task.name, payload=payload(task), error=str(error))
        counters.count(counters.HINT_FAILURES)
    else:
        log.info("enqueued task", task=task.name, task_id=task.id, payload=payload(task), delay=delay)


@huey.on_shutdown()
def hang_up() -> None:
    """Close the mail server's connection of a worker that ends."""
    mail.close()


@huey.before_stop
def let_go() -> None:
    """Let the mails in the workers' hands end soon, so that none is left leased."""
    mail.stop()
