"""Totals that only grow: what was counted stays counted when its rows are pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, String, case, cast, func, literal, select, text, union_all
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from webapp.attempts import DeliveryAttempt
from webapp.audit import AuditEvent
from webapp.clock import seconds_between
from webapp.extensions import Model, db
from webapp.outbox import OutgoingEmail

# How long mails took from promise to acceptance falls into these, in seconds, each up to and with its bound.
ACCEPT_BOUNDS = (1, 2.5, 5, 10, 12.5, 15, 20, 30, 60, 120, 300, 900, 3600, 14400, 86400)
BEYOND = "+Inf"

# What leaves no row, and is counted as it happens.
FENCED_WRITES = "fenced_writes"
HINT_FAILURES = "hint_failures"


class Total(Model):
    """How much of it there was, beside what rows still show."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    label: Mapped[str] = mapped_column(String(50), primary_key=True)
    value: Mapped[float]


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


def keep(rows: Callable[..., Select[str, Any]], *which: ColumnElement[bool]) -> None:
    """Keep the count of rows that the caller's transaction is about to delete."""
    add(rows.__name__, {label: value for label, value in db.session.execute(rows(*which)) if value})


def grown(rows: Callable[..., Select[str, Any]]) -> dict[str, float]:
    """Return the total by label: what rows show now, and what was kept of those that are gone.

    One statement, and so one moment: between two, pruning would make a total shrink.
    """
    shown = rows().subquery()
    label, value = shown.c
    every = union_all(
        select(cast(label, String).label("label"), value.label("value")),
        select(Total.label, Total.value).where(Total.name == rows.__name__),
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
