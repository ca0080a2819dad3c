"""Queries for dashboards, metrics and commands, in one place: all of them show the same figures."""

from __future__ import annotations

import operator
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, func, literal, literal_column, select, tuple_, union_all
from sqlalchemy.orm import aliased

from webapp import counters
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import UTCDateTime, db_now
from webapp.delivery import throttle
from webapp.delivery.circuit_breaker import MailBreaker
from webapp.delivery.heartbeats import WorkerHeartbeat, is_alive
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.outbox.pause import MailPause

STATUSES = ("queued", "sending", "sent", "dead", "canceled")
ACTIVE = ("queued", "sending")


# How things are: numbers that a glance takes in.


@dataclass(frozen=True)
class Stats:
    """How long it has been so: nothing while no mail is due, the breaker is closed, no mail is held back.

    `limit_reached`: the limit of mails in all for which they wait now.
    """

    by_status: dict[str, int]
    due: int
    oldest_due_seconds: float | None
    sent_last_hour: int
    breaker_seconds: float | None
    breaker_reason: str | None
    limit_reached: str | None
    paused_seconds: float | None
    paused_by: str | None
    pause_reason: str | None
    workers: int


def stats() -> Stats:
    first = func.min(OutgoingEmail.next_attempt_at).label("since")
    waiting = db.session.execute(select(func.count().label("due"), first, _now()).where(is_due())).one()
    server = db.session.execute(select(MailBreaker.opened_at.label("since"), MailBreaker.reason, _now())).one()
    held = db.session.execute(
        select(MailPause.paused_at.label("since"), MailPause.paused_by, MailPause.reason, _now())
    ).one()
    return Stats(
        by_status=_by_status(),
        due=waiting.due,
        oldest_due_seconds=_age(waiting),
        sent_last_hour=_number(select(func.count()).where(OutgoingEmail.sent_at > db_now(-3600))),
        breaker_seconds=_age(server),
        breaker_reason=server.reason,
        limit_reached=throttle.spent(),
        paused_seconds=_age(held),
        paused_by=held.paused_by,
        pause_reason=held.reason,
        workers=_number(select(func.count()).where(is_alive())),
    )


def _by_status() -> dict[str, int]:
    """Count the mails that are few, each state by its index; the many that were sent are counted once."""
    # Named in the statement itself: of a parameter's value SQLite would not know which index has it.
    states = [
        select(literal(status), func.count()).where(OutgoingEmail.status == literal_column(f"'{status}'"))
        for status in STATUSES
        if status != "sent"
    ]
    counted = {row[0]: row[1] for row in db.session.execute(union_all(*states))}
    sent = sum(counters.grown(counters.accepted).values()) - counters.counted(counters.PRUNED)
    return {status: counted.get(status, int(sent)) for status in STATUSES}


def due() -> int:
    """Return how many mails wait for nothing but a worker."""
    return _number(select(func.count()).where(is_due()))


# Mails, and their attempts.


@dataclass(frozen=True)
class Filter:
    """Which mails are meant; nothing left out means any."""

    status: str | None = None
    template: str | None = None
    address: str | None = None
    code: int | None = None
    user_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    ids: tuple[uuid.UUID, ...] | None = None
    # Those alone that an operator can still do something about: they wait or are dead.
    is_open: bool = False


def mails(which: Filter, *, limit: int, before: uuid.UUID | None = None) -> Sequence[OutgoingEmail]:
    """Return the newest mails first; the next page comes `before` the last of this one."""
    query = select(OutgoingEmail).where(*_conditions(which))
    if before is not None:
        query = _beyond(query, before, operator.lt)
    return db.session.scalars(
        query.order_by(OutgoingEmail.created_at.desc(), OutgoingEmail.id.desc()).limit(limit)
    ).all()


def ids(which: Filter, *, limit: int | None = None, after: uuid.UUID | None = None) -> Sequence[uuid.UUID]:
    """Return all of them, the oldest first; or only so many, `after` the last of those before."""
    query = select(OutgoingEmail.id).where(*_conditions(which))
    if after is not None:
        query = _beyond(query, after, operator.gt)
    return db.session.scalars(query.order_by(OutgoingEmail.created_at, OutgoingEmail.id).limit(limit)).all()


def count(which: Filter, *, after: uuid.UUID | None = None) -> int:
    query = select(func.count()).select_from(OutgoingEmail).where(*_conditions(which))
    return _number(_beyond(query, after, operator.gt) if after is not None else query)


def mails_like(prefix: str, *, limit: int) -> Sequence[OutgoingEmail]:
    """Return the mails whose id begins so. Raises ValueError when no id can."""
    digits = prefix.replace("-", "")
    if not re.fullmatch("[0-9A-Fa-f]{1,32}", digits):
        raise ValueError(f"{prefix!r} is not the beginning of an id")
    # A range of the key: the same on engines that keep ids as bytes and as text.
    first, last = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
    return db.session.scalars(
        select(OutgoingEmail).where(OutgoingEmail.id.between(first, last)).order_by(OutgoingEmail.id).limit(limit)
    ).all()


@dataclass(frozen=True)
class Reason:
    """Why mails are dead: our class of error, the server's code, and what the newest of them says."""

    error: str | None
    code: int | None
    count: int
    newest_at: datetime
    text: str | None


def reasons() -> list[Reason]:
    """Return why mails are dead, the most frequent first."""
    dead = (
        select(
            OutgoingEmail.last_error_class.label("error"),
            OutgoingEmail.last_smtp_code.label("code"),
            func.count().label("count"),
            func.max(OutgoingEmail.created_at, type_=UTCDateTime()).label("newest_at"),
        )
        .where(OutgoingEmail.status == literal_column("'dead'"))
        .group_by(OutgoingEmail.last_error_class, OutgoingEmail.last_smtp_code)
        .order_by(func.count().desc())
    )
    # The index has all but the text, which is asked for once a reason.
    return [Reason(*row, text=_newest_text(row.error, row.code)) for row in db.session.execute(dead).all()]


def _newest_text(error: str | None, code: int | None) -> str | None:
    return db.session.scalar(
        select(OutgoingEmail.last_error)
        .where(
            OutgoingEmail.status == "dead",
            OutgoingEmail.last_error_class == error,
            OutgoingEmail.last_smtp_code == code,
        )
        .order_by(OutgoingEmail.created_at.desc())
        .limit(1)
    )


def in_hand() -> Sequence[OutgoingEmail]:
    """Return the mails that are being sent just now."""
    return db.session.scalars(
        select(OutgoingEmail).where(OutgoingEmail.status == "sending").order_by(OutgoingEmail.lease_until)
    ).all()


def audited(*, limit: int, before: int | None = None, action: str | None = None) -> Sequence[AuditEvent]:
    """Return the newest events first; the next page comes `before` the last of this one."""
    query = select(AuditEvent).order_by(AuditEvent.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEvent.id < before)
    if action is not None:
        query = query.where(AuditEvent.action == action)
    return db.session.scalars(query).all()


def attempts_at(email_id: uuid.UUID) -> Sequence[DeliveryAttempt]:
    return db.session.scalars(
        select(DeliveryAttempt).where(DeliveryAttempt.email_id == email_id).order_by(DeliveryAttempt.id)
    ).all()


def last_attempt() -> int:
    """Return the newest attempt's id: what came after can be asked for with outcomes()."""
    return _number(select(func.max(DeliveryAttempt.id)))


def outcomes(worker: str, *, after: int) -> dict[str, int]:
    """Return how this worker's attempts ended since."""
    query = select(DeliveryAttempt.outcome, func.count()).where(
        DeliveryAttempt.id > after, DeliveryAttempt.worker == worker
    )
    return {row.outcome: row[1] for row in db.session.execute(query.group_by(DeliveryAttempt.outcome))}


@dataclass(frozen=True)
class Worker:
    """A consumer, alive or gone without a word; `sending`: how many mails are in its hands."""

    name: str
    host: str
    pid: int
    version: str | None
    started_at: datetime
    seen_at: datetime
    is_alive: bool
    sending: int


def workers() -> Sequence[Worker]:
    sending = (
        select(func.count())
        # A thread's name follows its consumer's.
        .where(OutgoingEmail.status == "sending", OutgoingEmail.locked_by.startswith(WorkerHeartbeat.name + ":"))
        .scalar_subquery()
    )
    beats = select(WorkerHeartbeat, is_alive(), sending).order_by(WorkerHeartbeat.started_at)
    return [
        Worker(beat.name, beat.host, beat.pid, beat.version, beat.started_at, beat.seen_at, is_alive, count)
        for beat, is_alive, count in db.session.execute(beats)
    ]


# What the questions are made of.


def _conditions(which: Filter) -> list[ColumnElement[bool]]:
    wanted = {
        OutgoingEmail.status: which.status,
        OutgoingEmail.template: which.template,
        func.lower(OutgoingEmail.to_address): which.address and which.address.lower(),
        OutgoingEmail.last_smtp_code: which.code,
        OutgoingEmail.user_id: which.user_id,
        OutgoingEmail.last_error_class: which.error,
    }
    found = [column == value for column, value in wanted.items() if value is not None]
    if which.since is not None:
        found.append(OutgoingEmail.created_at >= which.since)
    if which.until is not None:
        found.append(OutgoingEmail.created_at < which.until)
    if which.ids is not None:
        found.append(OutgoingEmail.id.in_(which.ids))
    if which.is_open:
        found.append(OutgoingEmail.status.in_(["queued", "dead"]))
    return found


def _beyond(query: Select[Any], email_id: uuid.UUID, is_beyond: Callable[[Any, Any], Any]) -> Select[Any]:
    """Return what comes after this mail in a list, by its key: quick on whichever page."""
    last = aliased(OutgoingEmail)
    key = select(last.created_at, last.id).where(last.id == email_id).subquery()
    ours = tuple_(OutgoingEmail.created_at, OutgoingEmail.id)
    return query.join(key, is_beyond(ours, tuple_(key.c.created_at, key.c.id)))


def is_due() -> ColumnElement[bool]:
    return and_(OutgoingEmail.status == "queued", OutgoingEmail.next_attempt_at <= db_now())


def _now() -> ColumnElement[datetime]:
    return db_now().label("now")


def _age(row: Row[*tuple[Any, ...]]) -> float | None:
    """Return for how many seconds it has been so, by the database's clock."""
    return (row.now - row.since).total_seconds() if row.since else None


def _number(query: Select[Any]) -> int:
    return db.session.scalar(query) or 0
