"""Queries for dashboards, metrics and commands, in one place so that all of them show the same figures."""

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


# The current state in a few numbers.


@dataclass(frozen=True)
class Stats:
    """`*_seconds`: for how long; None while no email is due, the breaker is closed, or email is not paused.

    `limit_reached`: the total limit that signups' emails wait for.
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
    """Count the emails in each state by its index, except the many that were sent: counters have those."""
    # A literal: from a parameter SQLite could not tell which partial index to use.
    states = [
        select(literal(status), func.count()).where(OutgoingEmail.status == literal_column(f"'{status}'"))
        for status in STATUSES
        if status != "sent"
    ]
    counted = {row[0]: row[1] for row in db.session.execute(union_all(*states))}
    sent = sum(counters.grown(counters.accepted).values()) - counters.counted(counters.PRUNED)
    return {status: counted.get(status, int(sent)) for status in STATUSES}


def due() -> int:
    """Return how many emails wait only for a worker."""
    return _number(select(func.count()).where(is_due()))


# Emails and their attempts.


@dataclass(frozen=True)
class Filter:
    """Which emails to find; a field left out matches any."""

    status: str | None = None
    template: str | None = None
    address: str | None = None
    code: int | None = None
    user_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    ids: tuple[uuid.UUID, ...] | None = None
    # Only those that an operator can still act on: queued or dead.
    is_open: bool = False


def mails(
    chosen: Filter, *, limit: int, beyond: uuid.UUID | None = None, oldest_first: bool = False
) -> Sequence[OutgoingEmail]:
    """Return emails, newest first unless `oldest_first`. `beyond`: the last email of the previous page."""
    query = select(OutgoingEmail).where(*_conditions(chosen))
    if beyond is not None:
        query = _beyond(query, beyond, operator.gt if oldest_first else operator.lt)
    key = (OutgoingEmail.created_at, OutgoingEmail.id)
    return db.session.scalars(
        query.order_by(*(key if oldest_first else (column.desc() for column in key))).limit(limit)
    ).all()


def ids(chosen: Filter, *, limit: int | None = None, after: uuid.UUID | None = None) -> Sequence[uuid.UUID]:
    """Return ids, oldest first: all of them, or `limit` of those that come `after` this one."""
    query = select(OutgoingEmail.id).where(*_conditions(chosen))
    if after is not None:
        query = _beyond(query, after, operator.gt)
    return db.session.scalars(query.order_by(OutgoingEmail.created_at, OutgoingEmail.id).limit(limit)).all()


def count(chosen: Filter, *, after: uuid.UUID | None = None, most: int | None = None) -> int:
    """Return how many there are, or how many come `after` this one; at most `most` are counted."""
    query = select(OutgoingEmail.id).where(*_conditions(chosen)).limit(most)
    query = _beyond(query, after, operator.gt) if after is not None else query
    return _number(select(func.count()).select_from(query.subquery()))


def mails_like(prefix: str, *, limit: int) -> Sequence[OutgoingEmail]:
    """Return the emails whose ids begin with this. Raises ValueError if no id can."""
    digits = prefix.replace("-", "")
    if not re.fullmatch("[0-9A-Fa-f]{1,32}", digits):
        raise ValueError(f"{prefix!r} is not the beginning of an id")
    # A range of the key works on engines that store ids as bytes and as text.
    first, last = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
    return db.session.scalars(
        select(OutgoingEmail).where(OutgoingEmail.id.between(first, last)).order_by(OutgoingEmail.id).limit(limit)
    ).all()


@dataclass(frozen=True)
class Reason:
    """Why emails are dead: our error class, the server's code, and the error text of the newest one."""

    error: str | None
    code: int | None
    count: int
    newest_at: datetime
    text: str | None


def reasons() -> list[Reason]:
    """Return why emails are dead, the most frequent reason first."""
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
    # The index has everything but the text, which takes a query for each reason.
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
    """Return the emails that are being sent right now."""
    return db.session.scalars(
        select(OutgoingEmail).where(OutgoingEmail.status == "sending").order_by(OutgoingEmail.lease_until)
    ).all()


def attempts_at(email_id: uuid.UUID) -> Sequence[DeliveryAttempt]:
    return db.session.scalars(
        select(DeliveryAttempt).where(DeliveryAttempt.email_id == email_id).order_by(DeliveryAttempt.id)
    ).all()


def last_attempt() -> int:
    """Return the newest attempt's id; outcomes() counts those after it."""
    return _number(select(func.max(DeliveryAttempt.id)))


def outcomes(worker: str, *, after: int) -> dict[str, int]:
    """Count how this worker's later attempts ended."""
    query = select(DeliveryAttempt.outcome, func.count()).where(
        DeliveryAttempt.id > after, DeliveryAttempt.worker == worker
    )
    return {row.outcome: row[1] for row in db.session.execute(query.group_by(DeliveryAttempt.outcome))}


@dataclass(frozen=True)
class Worker:
    """A consumer, alive or silently gone; `sending`: how many emails it holds."""

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
        # `locked_by` is the consumer's name, then the thread's.
        .where(OutgoingEmail.status == "sending", OutgoingEmail.locked_by.startswith(WorkerHeartbeat.name + ":"))
        .scalar_subquery()
    )
    beats = select(WorkerHeartbeat, is_alive(), sending).order_by(WorkerHeartbeat.started_at)
    return [
        Worker(beat.name, beat.host, beat.pid, beat.version, beat.started_at, beat.seen_at, is_alive, count)
        for beat, is_alive, count in db.session.execute(beats)
    ]


# Parts of the queries.


def _conditions(chosen: Filter) -> list[ColumnElement[bool]]:
    wanted = {
        OutgoingEmail.status: chosen.status,
        OutgoingEmail.template: chosen.template,
        func.lower(OutgoingEmail.to_address): chosen.address and chosen.address.lower(),
        OutgoingEmail.last_smtp_code: chosen.code,
        OutgoingEmail.user_id: chosen.user_id,
        OutgoingEmail.last_error_class: chosen.error,
    }
    found = [column == value for column, value in wanted.items() if value is not None]
    if chosen.since is not None:
        found.append(OutgoingEmail.created_at >= chosen.since)
    if chosen.until is not None:
        found.append(OutgoingEmail.created_at < chosen.until)
    if chosen.ids is not None:
        found.append(OutgoingEmail.id.in_(chosen.ids))
    if chosen.is_open:
        found.append(OutgoingEmail.status.in_(["queued", "dead"]))
    return found


def _beyond(query: Select[Any], email_id: uuid.UUID, is_beyond: Callable[[Any, Any], Any]) -> Select[Any]:
    """Continue a list after this email, by its key, so that every page is as fast as the first."""
    last = aliased(OutgoingEmail)
    key = select(last.created_at, last.id).where(last.id == email_id).subquery()
    ours = tuple_(OutgoingEmail.created_at, OutgoingEmail.id)
    return query.join(key, is_beyond(ours, tuple_(key.c.created_at, key.c.id)))


def is_due() -> ColumnElement[bool]:
    return and_(OutgoingEmail.status == "queued", OutgoingEmail.next_attempt_at <= db_now())


def _now() -> ColumnElement[datetime]:
    return db_now().label("now")


def _age(row: Row[*tuple[Any, ...]]) -> float | None:
    """Return the seconds since `row.since`, by the database's clock."""
    return (row.now - row.since).total_seconds() if row.since else None


def _number(query: Select[Any]) -> int:
    return db.session.scalar(query) or 0
