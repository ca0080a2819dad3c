"""Totals that only grow: each row is counted once, and stays counted after it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from webapp.audit import AuditEvent
from webapp.db.base import Model, db
from webapp.db.clock import UTCDateTime, db_now, now, seconds_between
from webapp.db.locks import try_lock
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import OutgoingEmail

# Histogram buckets for the seconds from queueing an email to its acceptance: inclusive upper bounds.
ACCEPT_BOUNDS = (1, 2.5, 5, 10, 12.5, 15, 20, 30, 60, 120, 300, 900, 3600, 14400, 86400)
BEYOND = "+Inf"

# Rows are counted once they are this old: by then no open transaction can add any that are older.
SETTLED_SECONDS = 300.0
# How often workers fold rows into the totals. Reading a total counts the rows since then.
FOLD_SECONDS = 300.0

# Rows per transaction: on SQLite, other writers wait for it.
FOLD_ROWS = 100_000

# Hourly totals are kept for as long as plots go back.
HOUR = 3600
KEEP_HOURS = timedelta(days=8)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# These leave no row and are counted as they happen.
FENCED_WRITES = "fenced_writes"
HINT_FAILURES = "hint_failures"
# Accepted emails whose rows were pruned.
PRUNED = "accepted_pruned"


class Total(Model):
    """A total up to the time in TotalUntil; later rows are counted when it is read."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    label: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[float]


class TotalUntil(Model):
    """Rows before this time are already in the total."""

    __tablename__ = "totals_until"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    until: Mapped[datetime]


class HourlyTotal(Model):
    """The share of one hour in the total."""

    __tablename__ = "totals_by_hour"

    start: Mapped[datetime] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    label: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[float]


def attempts(*which: ColumnElement[bool]) -> Select[str, int]:
    """Delivery attempts, by outcome."""
    return select(DeliveryAttempt.outcome, func.count()).where(*which).group_by(DeliveryAttempt.outcome)


def accepted(*which: ColumnElement[bool]) -> Select[str, int]:
    """Accepted emails, by bucket of the time they took."""
    bound = accept_bound()
    return select(bound, func.count()).where(OutgoingEmail.sent_at.is_not(None), *which).group_by(bound)


def accepted_seconds(*which: ColumnElement[bool]) -> Select[str, float]:
    """The total time that accepted emails took."""
    return select(literal(""), func.coalesce(func.sum(_took()), 0)).where(OutgoingEmail.sent_at.is_not(None), *which)


def events(*which: ColumnElement[bool]) -> Select[str, int]:
    """Audit events, by action."""
    return select(AuditEvent.action, func.count()).where(*which).group_by(AuditEvent.action)


ROWS: dict[str, Callable[..., Select[str, Any]]] = {
    rows.__name__: rows for rows in (attempts, accepted, accepted_seconds, events)
}
TIMES: dict[str, InstrumentedAttribute[Any]] = {
    "attempts": DeliveryAttempt.finished_at,
    "accepted": OutgoingEmail.sent_at,
    "accepted_seconds": OutgoingEmail.sent_at,
    "events": AuditEvent.at,
}

# This SQL works on PostgreSQL and SQLite; SQLAlchemy has a different function for each.
ADD = text(
    "INSERT INTO totals (name, label, value) VALUES (:name, :label, :value)"
    " ON CONFLICT (name, label) DO UPDATE SET value = totals.value + excluded.value"
)

ADD_HOUR = text(
    "INSERT INTO totals_by_hour (start, name, label, value) VALUES (:start, :name, :label, :value)"
    " ON CONFLICT (start, name, label) DO UPDATE SET value = totals_by_hour.value + excluded.value"
).bindparams(bindparam("start", type_=UTCDateTime()))


def add(name: str, counts: Mapping[str, float]) -> None:
    """Add to a total, label by label, as part of the caller's transaction."""
    # Always in the same order, so that two transactions adding at once cannot deadlock.
    for label in sorted(counts):
        db.session.execute(ADD, {"name": name, "label": label, "value": counts[label]})


def fold() -> bool:
    """Add some of the rows since the last fold to the totals, and commit; return whether there may be more.

    Done often, so that reading a total is quick. A lock keeps two processes from counting the same rows: the second
    does nothing.
    """
    if not is_behind() or not try_lock(["totals"]):
        db.session.rollback()
        return False
    for mark in db.session.execute(_marks()).all():
        if _is_behind(mark):
            until = min(mark.settled, _after_some(TIMES[mark.name], mark.until) or mark.settled)
            _fold(ROWS[mark.name], mark.until, until)
            db.session.execute(update(TotalUntil).where(TotalUntil.name == mark.name).values(until=until))
    db.session.execute(delete(HourlyTotal).where(HourlyTotal.start < db_now(-KEEP_HOURS.total_seconds())))
    db.session.commit()
    return True


def is_behind() -> bool:
    """Return whether there are rows that should have been counted by now."""
    return any(_is_behind(mark) for mark in db.session.execute(_marks()))


def _marks() -> Select[str, datetime, datetime]:
    return select(TotalUntil.name, TotalUntil.until, db_now(-SETTLED_SECONDS).label("settled"))


def _after_some(at: InstrumentedAttribute[Any], since: datetime) -> datetime | None:
    """Return the time up to which there are FOLD_ROWS rows, or None if there are fewer."""
    until: datetime | None = db.session.scalar(select(at).where(at >= since).order_by(at).offset(FOLD_ROWS).limit(1))
    # When more than FOLD_ROWS rows share one moment, they are counted together with all that follow.
    return until if until != since else None


def _fold(rows: Callable[..., Select[str, Any]], since: datetime, until: datetime) -> None:
    at = TIMES[rows.__name__]
    counts: dict[str, float] = {}
    for label, value, part in db.session.execute(_by_part(rows(at >= since, at < until), at, HOUR)):
        counts[label] = counts.get(label, 0) + value
        start = EPOCH + timedelta(seconds=part * HOUR)
        if start < now() - KEEP_HOURS:
            continue
        db.session.execute(ADD_HOUR, {"name": rows.__name__, "label": label, "start": start, "value": value})
    add(rows.__name__, counts)


def _is_behind(mark: Any) -> bool:
    return bool((mark.settled - mark.until).total_seconds() > FOLD_SECONDS)


def grown(rows: Callable[..., Select[str, Any]]) -> dict[str, float]:
    """Return the total by label: the stored one plus the rows since.

    A single statement: a fold between two statements would count its rows twice.
    """
    name = rows.__name__
    until = select(TotalUntil.until).where(TotalUntil.name == name)
    # A literal lets the planner see how few rows match; the subquery is what makes the result right.
    since = db.session.scalar(until)
    label, value = rows(TIMES[name] >= since, TIMES[name] >= until.scalar_subquery()).subquery().c
    every = union_all(
        select(cast(label, String).label("label"), value.label("value")),
        select(Total.label, Total.value).where(Total.name == name),
    ).subquery()
    summed = select(every.c.label, func.sum(every.c.value)).group_by(every.c.label)
    return {row[0]: float(row[1] or 0) for row in db.session.execute(summed)}


def parts(rows: Callable[..., Select[str, Any]], begin: datetime, seconds: int) -> list[tuple[datetime, str, float]]:
    """Return (start, label, value) since `begin`, in slots of `seconds`, or of an hour if that is shorter.

    A single statement, as in grown().
    """
    name = rows.__name__
    at = TIMES[name]
    if seconds < HOUR:
        query: Any = _by_part(rows(at >= begin), at, seconds)
    else:
        until = select(TotalUntil.until).where(TotalUntil.name == name)
        known = max(begin, db.session.scalar(until) or begin)
        kept = (HourlyTotal.name == name, HourlyTotal.start >= begin)
        query = union_all(
            _by_part(rows(at >= known, at >= until.scalar_subquery()), at, HOUR),
            select(HourlyTotal.label, HourlyTotal.value, cast(_part(HourlyTotal.start, HOUR), Integer)).where(*kept),
        )
    return [(EPOCH + timedelta(seconds=part * min(seconds, HOUR)), *row) for *row, part in db.session.execute(query)]


def _by_part(rows: Select[str, Any], at: InstrumentedAttribute[Any], seconds: int) -> Select[str, Any, int]:
    """Group the rows by time slot too."""
    part = _part(at, seconds)
    return rows.add_columns(part).group_by(part)


def _part(at: ColumnElement[datetime] | InstrumentedAttribute[Any], seconds: int) -> ColumnElement[int]:
    return cast(func.floor(seconds_between(literal(EPOCH, UTCDateTime()), at) / seconds), Integer)


def counted(name: str) -> float:
    """Return the total of something that leaves no row."""
    return db.session.scalar(select(Total.value).where(Total.name == name)) or 0


def count(name: str) -> None:
    """Count one thing that leaves no row, and commit; it is lost if the database is away."""
    try:
        add(name, {"": 1})
        db.session.commit()
    except SQLAlchemyError:
        db.session.rollback()


def accept_bound() -> ColumnElement[str]:
    """Return the bucket of an email's time to acceptance, as text."""
    return case(*[(_took() <= bound, literal(f"{bound:g}")) for bound in ACCEPT_BOUNDS], else_=literal(BEYOND))


def _took() -> ColumnElement[float]:
    return seconds_between(OutgoingEmail.created_at, OutgoingEmail.sent_at)
