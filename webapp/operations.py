"""Acts of operators on emails: each is noted in the audit, in the commit that does it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import structlog

from webapp import audit
from webapp.accounts.identifiers.email_addresses import Address
from webapp.db.base import db
from webapp.outbox import pause, posting, transitions
from webapp.outbox.kinds import TEST_TEMPLATE
from webapp.outbox.outgoing_email import OutgoingEmail

log = structlog.get_logger(__name__)

# One statement takes only so many parameters, and nobody waits long for the rows of so few.
CHUNK = 500


@dataclass(frozen=True)
class Retried:
    """How many dead mails were promised anew, and how many that wait were made due."""

    revived: int = 0
    hurried: int = 0

    def __add__(self, other: Retried) -> Retried:
        return Retried(self.revived + other.revived, self.hurried + other.hurried)


def retry(email_ids: Sequence[uuid.UUID]) -> Retried:
    """Revive dead mails and make waiting ones due, and commit. At most CHUNK of them at once."""
    retried = Retried(hurried=transitions.hurry(email_ids), revived=transitions.revive(email_ids))
    _note("mail_retried", email_ids, retried.revived + retried.hurried)
    return retried


def cancel(email_ids: Sequence[uuid.UUID]) -> int:
    """End mails that wait or are dead, and commit; return how many. At most CHUNK of them at once."""
    count = transitions.cancel(
        OutgoingEmail.id.in_(email_ids),
        reason="canceled by an operator",
        error_class=transitions.CANCELED_BY_OPERATOR,
        statuses=("queued", "dead"),
    )
    _note("mail_canceled", email_ids, count)
    return count


def chunks(email_ids: Sequence[uuid.UUID]) -> Iterator[Sequence[uuid.UUID]]:
    return (email_ids[start : start + CHUNK] for start in range(0, len(email_ids), CHUNK))


def pause_mail(reason: str) -> bool:
    """Hold all mail back, and commit; return whether it was not so already."""
    begun = pause.begin(reason, audit.actor.get())
    if begun:
        audit.record("paused", detail=reason)
        log.warning("mail_paused", reason=reason)
    db.session.commit()
    return begun


def resume_mail() -> bool:
    """Let mail go again, and commit; return whether it was held back. The relay wakes workers up for what is due."""
    ended = pause.end()
    if ended:
        audit.record("resumed")
        log.warning("mail_resumed")
    db.session.commit()
    return ended


def post_test(address: Address) -> uuid.UUID:
    """Promise a test mail, and commit: it goes the way of every mail, and is tried once."""
    email_id = posting.post(
        to_address=address.mailed,
        user_id=None,
        dedupe_key=f"test:{uuid.uuid4()}",
        template=TEST_TEMPLATE,
        locale="en",
        priority=posting.VERIFICATION_PRIORITY,
        max_attempts=1,
    )
    if email_id is None:
        raise AssertionError("a new key cannot have a mail already")
    audit.record("mail_tested", detail=f"mail {email_id}")
    db.session.commit()
    return email_id


def _note(action: str, email_ids: Sequence[uuid.UUID], count: int) -> None:
    if count:
        audit.record(action, detail=f"mail {email_ids[0]}" if len(email_ids) == 1 else f"{count} mails")
    db.session.commit()
