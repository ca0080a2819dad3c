"""Forgetting: signups that nobody verified, and old rows, in batches that hold no long lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update

from webapp import counters
from webapp.accounts.codes import CodeTry
from webapp.accounts.links import VerifyEmail
from webapp.accounts.sessions import UserSession
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import Model, db
from webapp.db.clock import db_now
from webapp.outbox import kinds, transitions
from webapp.outbox.outgoing_email import FORGOTTEN, OutgoingEmail

log = structlog.get_logger(__name__)

BATCH = 500

DAY = 86400.0


@dataclass(frozen=True)
class Kind:
    """Rows of one table that are forgotten once they are so; `before` keeps what must outlive them."""

    model: type[Model]
    which: Callable[[], list[ColumnElement[bool]]]
    before: Callable[[Sequence[Any]], None] = lambda _ids: None
    # What is forgotten of a row; without it, the row itself.
    values: dict[str, Any] | None = None

    def count(self) -> int:
        return db.session.scalar(select(func.count()).select_from(self.model).where(*self.which())) or 0

    def forget(self) -> int:
        """Forget one batch, and commit; return how many rows."""
        table = self.model.__table__
        # Others who prune, confirm or revive just now keep theirs.
        old = select(table.c.id).where(*self.which()).limit(BATCH).with_for_update(skip_locked=True)
        ids = db.session.scalars(old).all()
        if ids:
            self.before(ids)
            forget = delete(self.model) if self.values is None else update(self.model).values(self.values)
            db.session.execute(forget.where(table.c.id.in_(ids)), execution_options={"synchronize_session": False})
        db.session.commit()
        return len(ids)


def prune() -> Iterator[tuple[str, int]]:
    """Forget all that is to be forgotten; yield what and how much after each batch, which is committed."""
    if not _count_all():
        return
    for name, kind in KINDS.items():
        forgotten = BATCH
        while forgotten == BATCH:
            forgotten = kind.forget()
            if forgotten:
                yield name, forgotten


def prune_batch() -> bool:
    """Forget one batch of each kind, and commit each; return whether there may be more."""
    if not _count_all():
        return False
    counts = {name: kind.forget() for name, kind in KINDS.items()}
    if any(counts.values()):
        log.info("pruned", **counts)
    return max(counts.values()) == BATCH


def _count_all() -> bool:
    """Count what is about to be deleted; return whether it is counted, which somebody else may be about to do."""
    while counters.fold():
        pass
    is_counted = not counters.is_behind()
    db.session.commit()
    return is_counted


def to_forget() -> dict[str, int]:
    """Return how many rows of each kind are to be forgotten now."""
    return {name: kind.count() for name, kind in KINDS.items()}


def _unverified() -> list[ColumnElement[bool]]:
    """Signups whose time is over; users from before verification have no end.

    None whose mail is being sent: what comes of that must still be written down.
    """
    is_sending = exists().where(OutgoingEmail.user_id == User.id, OutgoingEmail.status == "sending")
    return [User.email_verified_at.is_(None), User.purge_at < db_now(), ~is_sending]


def _finished_mails() -> list[ColumnElement[bool]]:
    return [OutgoingEmail.status.in_(["sent", "dead", "canceled"]), OutgoingEmail.finished_at < _long_ago()]


def _events() -> list[ColumnElement[bool]]:
    return [AuditEvent.at < _long_ago()]


def _sessions() -> list[ColumnElement[bool]]:
    # The retention is no shorter than an idle session lives.
    return [UserSession.seen_at < _long_ago()]


def _code_tries() -> list[ColumnElement[bool]]:
    # They count for a day, and after that for the user that they are of.
    is_nobodys = CodeTry.user_id.is_(None) & (CodeTry.tried_at < db_now(-DAY))
    return [or_(CodeTry.tried_at < _long_ago(), is_nobodys)]


def _links() -> list[ColumnElement[bool]]:
    """Links that changed an account, or might have; that of a signup stays with it.

    None that a mail still names: without it nobody could tell any more what the mail was about.
    """
    is_named = exists().where(OutgoingEmail.verify_email_id == VerifyEmail.id)
    return [VerifyEmail.purpose != "signup", VerifyEmail.created_at < _long_ago(), ~is_named]


def _addresses() -> list[ColumnElement[bool]]:
    """Finished mails whose user is gone, once their address's limit no longer counts them: they keep no address."""
    limits = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    counted = max([DAY, *(limit.get_expiry() for limit in limits)])
    return [
        OutgoingEmail.user_id.is_(None),
        OutgoingEmail.to_address != FORGOTTEN,
        or_(OutgoingEmail.template.is_(None), OutgoingEmail.template != kinds.TEST_TEMPLATE),
        OutgoingEmail.finished_at < db_now(-counted),
    ]


def _cancel_mails_of(user_ids: Sequence[Any]) -> None:
    transitions.cancel(OutgoingEmail.user_id.in_(user_ids), reason="its user is gone")


def _count_pruned(email_ids: Sequence[Any]) -> None:
    sent = select(func.count()).where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status == "sent")
    counters.add(counters.PRUNED, {"": db.session.scalar(sent) or 0})


def _long_ago() -> db_now:
    return db_now(-current_app.config["RETENTION_DAYS"] * DAY)


# In the order in which they are forgotten.
KINDS = {
    "signups": Kind(User, _unverified, _cancel_mails_of),
    "mails": Kind(OutgoingEmail, _finished_mails, _count_pruned),
    "audit_events": Kind(AuditEvent, _events),
    "sessions": Kind(UserSession, _sessions),
    "code_tries": Kind(CodeTry, _code_tries),
    "links": Kind(VerifyEmail, _links),
    "addresses": Kind(OutgoingEmail, _addresses, values={"to_address": FORGOTTEN, "budget": None, "facts": None}),
}
