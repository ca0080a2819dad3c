"""Advisory locks, held until the commit."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Text, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY

from webapp.db.base import db

# Made once, as what every mail needs.
LOCK = select(func.pg_advisory_xact_lock(func.hashtextextended(func.unnest(bindparam("keys", type_=ARRAY(Text))), 0)))


def lock(*keys: str) -> None:
    """Let nobody else hold one of these until the commit. On SQLite writers come one by one already."""
    if db.engine.dialect.name == "postgresql":
        # In one order, whoever asks: else two that ask for the same ones deadlock.
        db.session.execute(LOCK, {"keys": sorted(keys)})


# In one order, and each alone: a lock is tried here, and nobody waits for it.
TRY_LOCK = text(
    "SELECT key FROM unnest(CAST(:keys AS text[])) AS key WHERE pg_try_advisory_xact_lock(hashtextextended(key, 0))"
)


def try_lock(keys: Iterable[str]) -> set[str]:
    """Return which of these nobody else holds: now they are this transaction's, until its commit."""
    wanted = sorted(keys)
    if db.engine.dialect.name != "postgresql" or not wanted:
        return set(wanted)
    return set(db.session.scalars(TRY_LOCK, {"keys": wanted}))
