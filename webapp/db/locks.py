"""Advisory locks: held until the commit, or through many of them."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
from sqlalchemy import Connection, Text, TextClause, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import SQLAlchemyError

from webapp.db.base import db

log = structlog.get_logger(__name__)

# Built once: every email needs it.
LOCK = select(func.pg_advisory_xact_lock(func.hashtextextended(func.unnest(bindparam("keys", type_=ARRAY(Text))), 0)))


def lock(*keys: str) -> None:
    """Wait for these locks, and hold them until the commit. SQLite needs none: it has one writer at a time."""
    if db.engine.dialect.name == "postgresql":
        # Always in the same order: otherwise two transactions could deadlock.
        db.session.execute(LOCK, {"keys": sorted(keys)})


# Tries each lock on its own, without waiting.
TRY_LOCK = text(
    "SELECT key FROM unnest(CAST(:keys AS text[])) AS key WHERE pg_try_advisory_xact_lock(hashtextextended(key, 0))"
)


def try_lock(keys: Iterable[str]) -> set[str]:
    """Return those of the locks that nobody else holds: this transaction holds them until its commit."""
    wanted = sorted(keys)
    if db.engine.dialect.name != "postgresql" or not wanted:
        return set(wanted)
    return set(db.session.scalars(TRY_LOCK, {"keys": wanted}))


# How often a waiting process looks again.
LOOK_SECONDS = 0.2


@contextmanager
def one_at_a_time(connection: Connection, key: str) -> Iterator[None]:
    """Wait for the lock, and hold it through all commits of the block."""
    if connection.dialect.name == "postgresql":
        # Poll: building an index concurrently waits for running statements, and would deadlock with one that waits.
        taken = text("SELECT pg_try_advisory_lock(hashtextextended(:key, 0))").bindparams(key=key)
        if not _at_once(connection, taken):
            log.info("waiting_for_another", what=key)
            while not _at_once(connection, taken):
                time.sleep(LOOK_SECONDS)
        try:
            yield
        finally:
            with suppress(SQLAlchemyError):
                connection.rollback()
                _at_once(connection, text("SELECT pg_advisory_unlock(hashtextextended(:key, 0))").bindparams(key=key))
    elif file := connection.engine.url.database:
        # A file of its own: closing a second handle of an SQLite file releases the locks of the first one.
        with Path(f"{file}-{key}").open("w") as beside:
            fcntl.flock(beside, fcntl.LOCK_EX)
            yield
    else:
        yield


def _at_once(connection: Connection, statement: TextClause) -> bool:
    answer = bool(connection.scalar(statement))
    connection.commit()
    return answer
