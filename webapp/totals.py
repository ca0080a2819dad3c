"""Totals that only grow: each row is counted once, and stays counted when it is pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, String, case, cast, func, literal, select, text, union_all, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column

from webapp.attempts import DeliveryAttempt
from webapp.audit import AuditEvent
from webapp.clock import db_now, seconds_between
from webapp.extensions import Model, db, lock
from webapp.outbox import OutgoingEmail

# How long mails took from promise to acceptance falls into these, in seconds, each up to and with its bound.
ACCEPT_BOUNDS = (1, 2.5, 5, 10, 12.5, 15, 20, 30, 60, 120, 300, 900, 3600, 14400, 86400)
BEYOND = "+Inf"

# Rows younger than this may belong to a transaction that has not ended: they are counted later.
SETTLED_SECONDS = 300.0
# Workers count anew once in so long; what came since is counted by whoever asks.
FOLD_SECONDS = 60.0

# What leaves no row, and is counted as it happens.
FENCED_WRITES = "fenced_writes"
HINT_FAILURES = "hint_failures"
# Accepted mails whose rows are gone.
PRUNED = "accepted_pruned"


class Total(Model):
    """How much of it there was until the time in TotalUntil; later rows are counted when it is asked for."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    label: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[float]


class TotalUntil(Model):
    """Rows before this time are in the total already."""

    __tablename__ = "totals_until"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    until: Mapped[datetime]


def attempts(*which: ColumnElement[bool]) -> Select[str, int]:
    """Tries at mails, by how they ended."""
    return select(DeliveryAttempt.outcome, func.count()).where(*which).group_by(DeliveryAttempt.outcome)


def accepted(*which: ColumnElement[bool]) -> Select[str, int]:
    """Accepted mails, by the bound of the time they took."""
    bound = accept_bound()
    return select(bound, func.count()).where(OutgoingEmail.sent_at.is_not(None), *which).group_by(bound)


def accepted_seconds(*which: ColumnElement[bool]) -> Select[str, float]:
    """The time that all accepted mails took together."""
    return select(literal(""), func.coalesce(func.sum(_took()), 0)).where(OutgoingEmail.sent_at.is_not(None), *which)


def events(*which: ColumnElement[bool]) -> Select[str, int]:
    """What people did, by action."""
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

# The same words on PostgreSQL and SQLite, for which SQLAlchemy has two different functions.
ADD = text(
    "INSERT INTO totals (name, label, value) VALUES (:name, :label, :value)"
    " ON CONFLICT (name, label) DO UPDATE SET value = totals.value + excluded.value"
)


def add(name: str, counts: Mapping[str, float]) -> None:
    """Add to a total, label by label, as part of the caller's transaction."""
    # Always in one order: two who add at once must not wait for each other.
    for label in sorted(counts):
        db.session.execute(ADD, {"name": name, "label": label, "value": counts[label]})


def fold() -> None:
    """Count what came since the last time, and commit. It is done often enough that asking is quick."""
    marks = select(TotalUntil.name, TotalUntil.until, db_now(-SETTLED_SECONDS).label("settled"))
    if not any(_is_behind(mark) for mark in db.session.execute(marks)):
        return
    # Two who count at once would count twice.
    lock("totals")
    for mark in db.session.execute(marks).all():
        if _is_behind(mark):
            rows = ROWS[mark.name]
            at = TIMES[mark.name]
            add(mark.name, {row[0]: row[1] for row in db.session.execute(rows(at >= mark.until, at < mark.settled))})
            db.session.execute(update(TotalUntil).where(TotalUntil.name == mark.name).values(until=mark.settled))
    db.session.commit()


def _is_behind(mark: Any) -> bool:
    return bool((mark.settled - mark.until).total_seconds() > FOLD_SECONDS)


def grown(rows: Callable[..., Select[str, Any]]) -> dict[str, float]:
    """Return the total by label: what was counted, and the rows that came since.

    One statement, and so one moment: between two, whoever counts would make a total grow twice.
    """
    name = rows.__name__
    until = select(TotalUntil.until).where(TotalUntil.name == name)
    # Known beforehand it tells the planner how few rows they are; only the statement's own decides.
    since = db.session.scalar(until)
    label, value = rows(TIMES[name] >= since, TIMES[name] >= until.scalar_subquery()).subquery().c
    every = union_all(
        select(cast(label, String).label("label"), value.label("value")),
        select(Total.label, Total.value).where(Total.name == name),
    ).subquery()
    summed = select(every.c.label, func.sum(every.c.value)).group_by(every.c.label)
    return {row[0]: float(row[1] or 0) for row in db.session.execute(summed)}


def counted(name: str) -> float:
    """Return a total of what leaves no row."""
    return db.session.scalar(select(Total.value).where(Total.name == name)) or 0


def count(name: str) -> None:
    """Count one thing that leaves no row, and commit; a database that is away just then misses one."""
    try:
        add(name, {"": 1})
        db.session.commit()
    except SQLAlchemyError:
        db.session.rollback()


def accept_bound() -> ColumnElement[str]:
    """Return the bound that a mail's time to acceptance falls under, as text."""
    return case(*[(_took() <= bound, literal(f"{bound:g}")) for bound in ACCEPT_BOUNDS], else_=literal(BEYOND))


def _took() -> ColumnElement[float]:
    return seconds_between(OutgoingEmail.created_at, OutgoingEmail.sent_at)
