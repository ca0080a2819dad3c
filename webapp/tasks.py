"""The Huey tasks, and the relay that makes up for every hint that was lost."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError

from webapp import delivery, outbox
from webapp.broker import BrokerDown, payload
from webapp.delivery import DeliveryFailed
from webapp.extensions import db, huey, mail

log = structlog.get_logger(__name__)

# The relay looks every RELAY_SECONDS for mails that are due for OVERDUE seconds: their hint was lost, or is late.
RELAY_SECONDS = 1.0
OVERDUE = 1.0
HINT_AGAIN = 30.0
RELAY_BATCH = 100


# The name and the argument are what old messages hold: they never change.
@huey.task(name="deliver_email", priority=outbox.VERIFICATION_PRIORITY)
def deliver_email(email_id: str) -> None:
    delivery.deliver(uuid.UUID(email_id))


def deliver_later(email_id: uuid.UUID, delay: float = 0) -> None:
    """Hint that this mail is due in `delay` seconds. Without a broker the relay finds it all the same."""
    task = deliver_email.s(email_id=str(email_id), delay=delay or None)
    try:
        huey.enqueue(task)
    except BrokerDown as error:
        log.warning("hint_failed", task=task.name, payload=payload(task), error=str(error))
    else:
        log.info("enqueued task", task=task.name, payload=payload(task), delay=delay)


@huey.on_shutdown()
def hang_up() -> None:
    """Close the mail server's connection of a worker that ends."""
    mail.close()


@huey.companion
def relay(stopped: threading.Event) -> None:
    failing = False
    while not stopped.wait(RELAY_SECONDS):
        with huey.app.app_context():
            try:
                sweep()
            except SQLAlchemyError as error:
                # Told once: it goes on for as long as the database is away.
                if not failing:
                    log.exception("relay_failed", error=type(error).__name__)
                failing = True
            else:
                failing = False


def sweep() -> None:
    """Take back what dead workers held, and see to it that each overdue mail is sent."""
    outbox.reap()
    overdue = outbox.take_unhinted(RELAY_BATCH, overdue=OVERDUE, again_after=HINT_AGAIN)
    db.session.commit()
    for email_id in overdue:
        try:
            huey.enqueue(deliver_email.s(email_id=str(email_id)))
        except BrokerDown:
            # Its failure is logged, and written down: the others go on.
            with suppress(DeliveryFailed):
                delivery.deliver(email_id)
