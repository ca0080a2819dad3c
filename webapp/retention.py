"""What is forgotten, and when: signups that nobody verified, and old rows, in batches that hold no long lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import ColumnElement, delete, exists, func, select, update

from webapp import totals
from webapp.audit import AuditEvent
from webapp.clock import db_now
from webapp.codes import CodeTry
from webapp.extensions import Model, db
from webapp.outbox import OutgoingEmail
from webapp.sessions import UserSession
from webapp.users import User

log = structlog.get_logger(__name__)

BATCH = 500
DAY = 86400.0


@dataclass(frozen=True)
class Kind:
    """Rows of one table that are forgotten once they are so; `before` keeps what must outlive them."""

    model: type[Model]
    which: Callable[[], list[ColumnElement[bool]]]
    before: Callable[[Sequence[Any]], None] = lambda _ids: None

    def count(self) -> int:
        return db.session.scalar(select(func.count()).select_from(self.model).where(*self.which())) or 0

    def forget(self) -> int:
        """Delete one batch, and commit; return how many rows."""
        table = self.model.__table__
        # Others who prune, confirm or revive just now keep theirs.
        old = select(table.c.id).where(*self.which()).limit(BATCH).with_for_update(skip_locked=True)
        ids = db.session.scalars(old).all()
        if ids:
            self.before(ids)
            db.session.execute(delete(self.model).where(table.c.id.in_(ids)))
        db.session.commit()
        return len(ids)


def prune() -> Iterator[tuple[str, int]]:
    """Forget all that is to be forgotten; yield what and how much after each batch, which is committed."""
    _count_all()
    for name, kind in KINDS.items():
        forgotten = BATCH
        while forgotten == BATCH:
            forgotten = kind.forget()
            if forgotten:
                yield name, forgotten


def prune_batch() -> bool:
    """Forget one batch of each kind, and commit each; return whether there may be more."""
    _count_all()
    counts = {name: kind.forget() for name, kind in KINDS.items()}
    if any(counts.values()):
        log.info("pruned", **counts)
    return max(counts.values()) == BATCH


def _count_all() -> None:
    """Count what is about to be deleted."""
    while totals.fold():
        pass


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
    return [CodeTry.tried_at < _long_ago()]


def _cancel_mails_of(user_ids: Sequence[Any]) -> None:
    db.session.execute(
        update(OutgoingEmail)
        .where(OutgoingEmail.user_id.in_(user_ids), OutgoingEmail.status == "queued")
        .values(status="canceled", finished_at=db_now(), last_error="its user is gone"),
        execution_options={"synchronize_session": False},
    )


def _count_pruned(email_ids: Sequence[Any]) -> None:
    sent = select(func.count()).where(OutgoingEmail.id.in_(email_ids), OutgoingEmail.status == "sent")
    totals.add(totals.PRUNED, {"": db.session.scalar(sent) or 0})


def _long_ago() -> db_now:
    return db_now(-current_app.config["RETENTION_DAYS"] * DAY)


# In the order in which they are forgotten.
KINDS = {
    "signups": Kind(User, _unverified, _cancel_mails_of),
    "mails": Kind(OutgoingEmail, _finished_mails, _count_pruned),
    "audit_events": Kind(AuditEvent, _events),
    "sessions": Kind(UserSession, _sessions),
    "code_tries": Kind(CodeTry, _code_tries),
}
