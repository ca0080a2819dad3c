"""Which mails go now: those that are due, in batches, while mails may go at all."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from webapp.db.base import db
from webapp.delivery import circuit_breaker, send, throttle
from webapp.delivery.batch import Batch, Tried, Wake, nobody, room
from webapp.delivery.heartbeats import worker_name
from webapp.delivery.throughput import batch_size
from webapp.extensions import mail
from webapp.outbox import claims, due, leases
from webapp.outbox.outgoing_email import OutgoingEmail


def deliver(email_id: uuid.UUID) -> None:
    """Send this mail if it is due, nobody else does, and mails may go now. Raises DeliveryFailed."""
    now = room()
    claimed = _claim(now, 1, email_id) if now.mails else []
    tried = Batch(claimed).send() if claimed else {}
    db.session.commit()
    if failure := tried.get(email_id):
        raise failure


def deliver_due(limit: int, wake: Wake = nobody) -> Tried:
    """Send due mails, the most urgent first, while they may go; return those that were tried.

    `wake` is called with a mail that somebody else may take. After one whose answer does not come, what came last goes
    next: whoever asked for that looks at the page, and behind many that will not be answered either it would wait for
    all of them.
    """
    tried: Tried = {}
    taken, newest = 0, False
    while taken < limit and not mail.stopping and (now := room()).mails:
        size = min(batch_size.now(), limit - taken)
        if not (claimed := (_claim(now, size, order="newest") if newest else []) or _claim(now, size)):
            break
        taken += len(claimed)
        # A failure is logged, and written down: the others go on.
        last = Batch(claimed, wake).send()
        newest = any(failure and failure.is_slow for failure in last.values())
        tried |= last
    # Psycopg forgets its prepared statements at a rollback.
    db.session.commit()
    return tried


def probe() -> None:
    """While the breaker is open: let one due mail try the mail server, if nobody did lately.

    The newest that was never refused: another may be refused for reasons of its own.
    """
    now = throttle.room()
    if not now.mails or not circuit_breaker.take_probe():
        db.session.rollback()
        return
    while claimed := _claim(now, 1, order="newest") or _claim(now, 1):
        tried = Batch(claimed).send()
        # One that nobody needs, that cannot be written, or whose mailbox got enough, says nothing of the server.
        if any(failure is None or failure.meaning != "unsendable" for failure in tried.values()):
            if all(failure is None or failure.is_answer for failure in tried.values()):
                circuit_breaker.reset(leases.claimed_at(claimed[0]))
            break
    db.session.commit()


def _claim(
    now: throttle.Room,
    limit: int,
    email_id: uuid.UUID | None = None,
    *,
    order: due.Order = "urgent",
) -> Sequence[OutgoingEmail]:
    return claims.claim(
        worker_name(),
        limit=min(limit, now.mails),
        email_id=email_id,
        order=order,
        signups=now.signups,
        fixing=send.which,
    )
