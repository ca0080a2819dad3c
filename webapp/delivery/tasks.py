"""The Huey tasks, and the hints that wake them."""

from __future__ import annotations

import uuid
from contextlib import suppress

import structlog
from huey.api import Task
from sqlalchemy.exc import SQLAlchemyError

from webapp import counters
from webapp.db.base import db
from webapp.delivery import worker
from webapp.extensions import huey, mail
from webapp.outbox import hints
from webapp.queue.broker_breaker import BrokerDown
from webapp.queue.flask_huey import payload

log = structlog.get_logger(__name__)

# Higher goes first in Huey.
HINT_PRIORITY = 10


# The module, the name and the argument are what old messages hold: they never change, wherever this stands.
@huey.task(name="deliver_email", priority=HINT_PRIORITY, __module__="webapp.tasks")
def deliver_email(email_id: str) -> None:
    hinted = uuid.UUID(email_id)
    if hinted in worker.taken_here:
        return
    with worker.lanes.lane():
        # Those inside may have had it meanwhile.
        if hinted not in worker.taken_here:
            worker.deliver_all(hinted, wake=deliver_later)


@huey.when_due
def still_needed(due: list[Task]) -> list[Task]:
    """Return those of the hints whose mails are still to be sent: many go with others, or from another consumer."""
    ids = {hint.id: uuid.UUID(hint.kwargs["email_id"]) for hint in due}
    needed = {email_id for email_id in ids.values() if email_id not in worker.taken_here}
    if len(needed) > 1:
        # One question for all of them, where each would ask as much by itself.
        with suppress(SQLAlchemyError):
            needed = hints.are_due(needed)
            db.session.commit()
    return [hint for hint in due if ids[hint.id] in needed]


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
