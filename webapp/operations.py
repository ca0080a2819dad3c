"""Operators' actions on emails: each is recorded in the audit, in the same commit."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from webapp import audit
from webapp.accounts.identifiers.email_addresses import Address
from webapp.db.base import db
from webapp.outbox import pause, posting, transitions
from webapp.outbox.kinds import TEST_TEMPLATE
from webapp.outbox.outgoing_email import OutgoingEmail

log = structlog.get_logger(__name__)

# A statement takes a limited number of parameters, and this few rows are never locked for long.
CHUNK = 500


@dataclass(frozen=True)
class Retried:
    """How many dead emails were revived, and how many waiting ones were made due."""

    revived: int = 0
    hurried: int = 0

    def __add__(self, other: Retried) -> Retried:
        return Retried(self.revived + other.revived, self.hurried + other.hurried)


def retry(email_ids: Sequence[uuid.UUID]) -> Retried:
    """Revive dead emails and make waiting ones due, and commit. At most CHUNK at once."""
    retried = Retried(hurried=transitions.hurry(email_ids), revived=transitions.revive(email_ids))
    _note("mail_retried", email_ids, retried.revived + retried.hurried)
    return retried


def cancel(email_ids: Sequence[uuid.UUID]) -> int:
    """Cancel waiting and dead emails, and commit; return how many. At most CHUNK at once."""
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


def pause_mail(reason: str) -> datetime | None:
    """Pause all email, and commit; return since when, or None if it was already paused."""
    begun = pause.begin(reason, audit.actor.get())
    if begun is not None:
        audit.record("paused", detail=reason)
        log.warning("mail_paused", reason=reason)
    db.session.commit()
    return begun


def resume_mail(since: datetime | None = None) -> bool:
    """Resume all email, and commit; return False if it was not paused, or not by the pause that began at `since`.

    The relay wakes workers up for due emails.
    """
    ended = pause.end(since)
    if ended:
        audit.record("resumed")
        log.warning("mail_resumed")
    db.session.commit()
    return ended


def post_test(address: Address) -> uuid.UUID:
    """Queue a test email, and commit: it is sent like every other email, but tried only once."""
    email_id = posting.add(
        to_address=address.mailed,
        user_id=None,
        dedupe_key=f"test:{uuid.uuid4()}",
        template=TEST_TEMPLATE,
        locale="en",
        priority=posting.VERIFICATION_PRIORITY,
        max_attempts=1,
    )
    audit.record("mail_tested", detail=f"mail {email_id}")
    db.session.commit()
    return email_id


def _note(action: str, email_ids: Sequence[uuid.UUID], count: int) -> None:
    if count:
        audit.record(action, detail=f"mail {email_ids[0]}" if len(email_ids) == 1 else f"{count} mails")
    db.session.commit()
