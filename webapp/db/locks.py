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


# So often whoever waits looks again.
LOOK_SECONDS = 0.2


@contextmanager
def one_at_a_time(connection: Connection, key: str) -> Iterator[None]:
    """Wait until nobody else does this, and keep others from it, through all commits of the block."""
    if connection.dialect.name == "postgresql":
        # Whoever waits within a statement is waited for when an index is built: both would wait without end.
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
        # Beside the database: to close a second handle of an SQLite file gives up the locks that the first one has.
        with Path(f"{file}-{key}").open("w") as beside:
            fcntl.flock(beside, fcntl.LOCK_EX)
            yield
    else:
        yield


def _at_once(connection: Connection, statement: TextClause) -> bool:
    answer = bool(connection.scalar(statement))
    connection.commit()
    return answer
