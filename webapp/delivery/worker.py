"""Which emails are sent now: due ones, in batches, while sending is allowed at all."""

from __future__ import annotations

from collections.abc import Sequence

from webapp.db.base import db
from webapp.delivery import circuit_breaker, send, throttle
from webapp.delivery.batch import Batch, Tried, Wake, allowance, nobody
from webapp.delivery.heartbeats import worker_name
from webapp.delivery.throughput import batch_size
from webapp.extensions import mail
from webapp.outbox import claims, due
from webapp.outbox.outgoing_email import OutgoingEmail


def deliver_due(limit: int, wake: Wake = nobody) -> Tried:
    """Send due emails, the most urgent first, while sending is allowed; return those that were tried.

    `wake` is called with an email that another worker may take. Whenever an answer does not come, sending goes on from
    the other end: behind many that the server hangs for, the newest, whose people look at the page, would wait for all.
    """
    tried: Tried = {}
    taken, newest = 0, False
    while taken < limit and not mail.stopping and (now := allowance()).mails:
        size = min(batch_size.now(), limit - taken)
        if not (claimed := (_claim(now, size, order="newest") if newest else []) or _claim(now, size)):
            break
        taken += len(claimed)
        # A failure is already logged and recorded, so the others go on.
        last = Batch(claimed, wake).send()
        if any(failure and failure.is_slow for failure in last.values()):
            newest = not newest
        tried |= last
    # Not a rollback: psycopg forgets its prepared statements at one.
    db.session.commit()
    return tried


def probe() -> None:
    """While the breaker is open: try the mail server with one due email, if no worker did recently.

    The newest that never failed comes first: another may be refused for reasons of its own.
    """
    now = throttle.allowance()
    if now.mails and circuit_breaker.take_probe():
        while claimed := _claim(now, 1, order="newest") or _claim(now, 1):
            tried = Batch(claimed).send().values()
            # An email that nobody needs or can build, or whose mailbox got enough, says nothing about the server.
            if any(failure is None or failure.meaning != "unsendable" for failure in tried):
                if all(failure is None or failure.is_answer for failure in tried):
                    circuit_breaker.reset()
                db.session.commit()
                return
    # The turn is not used up if nothing was due.
    db.session.rollback()


def _claim(now: throttle.Allowance, limit: int, *, order: due.Order = "urgent") -> Sequence[OutgoingEmail]:
    return claims.claim(
        worker_name(),
        limit=min(limit, now.mails),
        order=order,
        signups=now.signups,
        extra_values=send.recipient_values,
    )
