"""The audit, as operators browse it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select

from webapp.audit import AuditEvent
from webapp.db.base import db, keyset_page

# The actions to choose from are those of this many of the newest events.
NEWEST = 1000


@dataclass(frozen=True)
class Filter:
    """Which events to find; a field left out matches any. `actor`: a part of the operator's name."""

    action: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def find(chosen: Filter, *, limit: int, beyond: int | None = None, oldest_first: bool = False) -> Sequence[AuditEvent]:
    """Return events, newest first unless `oldest_first`. `beyond`: the id of the last event of the previous page."""
    query = keyset_page(select(AuditEvent), AuditEvent.id, beyond=beyond, oldest_first=oldest_first)
    return db.session.scalars(query.where(*_conditions(chosen)).limit(limit)).all()


def count(chosen: Filter, *, most: int) -> int:
    """Return how many there are; at most `most` are counted."""
    query = select(AuditEvent.id).where(*_conditions(chosen)).limit(most)
    return db.session.scalar(select(func.count()).select_from(query.subquery())) or 0


def actions() -> list[str]:
    """Return the actions of recent events, in alphabetical order."""
    newest = select(AuditEvent.action).order_by(AuditEvent.id.desc()).limit(NEWEST).subquery()
    return sorted(db.session.scalars(select(newest.c.action).distinct()))


def _conditions(chosen: Filter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if chosen.action is not None:
        found.append(AuditEvent.action == chosen.action)
    if chosen.actor is not None:
        found.append(func.lower(AuditEvent.actor).contains(chosen.actor.lower(), autoescape=True))
    if chosen.since is not None:
        found.append(AuditEvent.at >= chosen.since)
    if chosen.until is not None:
        found.append(AuditEvent.at < chosen.until)
    return found
