"""Deleting old rows and signups that nobody verified, in batches that hold no lock for long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from flask import current_app
from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update

from webapp import counters
from webapp.accounts import links
from webapp.accounts.codes import CodeTry
from webapp.accounts.links import VerifyEmail
from webapp.accounts.second_factor.factor import SecondFactor, SecondFactorTry
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
    """The rows of one table to forget; `before` gets their ids first, and keeps what must outlive them."""

    model: type[Model]
    conditions: Callable[[], list[ColumnElement[bool]]]
    before: Callable[[Sequence[Any]], None] = lambda _ids: None
    # Columns to overwrite instead of deleting the row.
    values: dict[str, Any] | None = None

    def count(self) -> int:
        return db.session.scalar(select(func.count()).select_from(self.model).where(*self.conditions())) or 0

    def forget(self) -> int:
        """Forget one batch, and commit; return how many rows."""
        table = self.model.__table__
        # Skip rows that another transaction is pruning, confirming or reviving.
        old = select(table.c.id).where(*self.conditions()).limit(BATCH).with_for_update(skip_locked=True)
        ids = db.session.scalars(old).all()
        if ids:
            self.before(ids)
            forget = delete(self.model) if self.values is None else update(self.model).values(self.values)
            db.session.execute(forget.where(table.c.id.in_(ids)), execution_options={"synchronize_session": False})
        db.session.commit()
        return len(ids)


def prune() -> Iterator[tuple[str, int]]:
    """Forget everything that is old enough; yield the kind and the number of rows of each batch, once committed."""
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
    """Add rows to the totals before they are deleted; return False if another process is still at it."""
    while counters.fold():
        pass
    is_counted = not counters.is_behind()
    db.session.commit()
    return is_counted


def to_forget() -> dict[str, int]:
    """Return how many rows of each kind are old enough to be forgotten."""
    return {name: kind.count() for name, kind in KINDS.items()}


def _unverified() -> list[ColumnElement[bool]]:
    """Expired signups; users from before verification existed never expire.

    Skips signups whose email is being sent: its outcome must still be recorded.
    """
    is_sending = exists().where(OutgoingEmail.user_id == User.id, OutgoingEmail.status == "sending")
    return [User.email_verified_at.is_(None), User.purge_at < db_now(), ~is_sending]


def _finished_mails() -> list[ColumnElement[bool]]:
    return [OutgoingEmail.status.in_(["sent", "dead", "canceled"]), OutgoingEmail.finished_at < _long_ago()]


def _events() -> list[ColumnElement[bool]]:
    return [AuditEvent.at < _long_ago()]


def _sessions() -> list[ColumnElement[bool]]:
    # RETENTION_DAYS is never less than the life of an idle session.
    return [UserSession.seen_at < _long_ago()]


def _code_tries() -> list[ColumnElement[bool]]:
    # A wrong code counts for a day against its address; after that only against its user.
    is_nobodys = CodeTry.user_id.is_(None) & (CodeTry.tried_at < db_now(-DAY))
    return [or_(CodeTry.tried_at < _long_ago(), is_nobodys)]


def _second_factors() -> list[ColumnElement[bool]]:
    """Factors that were never confirmed.

    A factor that is being confirmed at this moment already has a code's time, even if its user is still seen without.
    """
    is_on = exists().where(User.id == SecondFactor.user_id, User.second_factor_at.is_not(None))
    return [SecondFactor.created_at < db_now(-DAY), SecondFactor.code_time.is_(None), ~is_on]


def _links() -> list[ColumnElement[bool]]:
    """Old links that changed an account, or might have. A signup's link stays with the signup.

    Skips links that an email still refers to: without its link, nothing says what the email was about.
    """
    is_named = exists().where(OutgoingEmail.verify_email_id == VerifyEmail.id)
    return [VerifyEmail.purpose != "signup", VerifyEmail.created_at < _long_ago(), ~is_named]


def _addresses() -> list[ColumnElement[bool]]:
    """Finished emails without a user, once their address's limit no longer counts them: their address is erased."""
    limits = current_app.config["MAIL_LIMIT_PER_ADDRESS"]
    counted = max([DAY, *(limit.get_expiry() for limit in limits)])
    return [
        OutgoingEmail.user_id.is_(None),
        OutgoingEmail.to_address != FORGOTTEN,
        or_(OutgoingEmail.template.is_(None), OutgoingEmail.template != kinds.TEST_TEMPLATE),
        OutgoingEmail.finished_at < db_now(-counted),
    ]


def _cancel_mails_of(user_ids: Sequence[Any]) -> None:
    transitions.cancel(OutgoingEmail.user_id.in_(user_ids), reason="its user was deleted")
    links.delete_of(user_ids)


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
    "second_factors": Kind(SecondFactor, _second_factors),
    "second_factor_tries": Kind(SecondFactorTry, lambda: [SecondFactorTry.tried_at < db_now(-DAY)]),
    "links": Kind(VerifyEmail, _links),
    "addresses": Kind(OutgoingEmail, _addresses, values={"to_address": FORGOTTEN, "budget": None, "facts": None}),
}
