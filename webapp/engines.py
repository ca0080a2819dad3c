"""What each kind of database is told when it is connected to, and how long it may take to answer."""

from __future__ import annotations

import select
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

import psycopg
from flask import has_request_context, request
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

# A connection to Postgres that rested for longer is asked whether it still lives.
FRESH_SECONDS = 5.0


def tune(engine: Engine, seconds: float) -> None:
    """`seconds`: how long a request may wait for an answer of Postgres."""
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    else:
        _tune_postgres(engine, seconds)


@contextmanager
def autocommit(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """Lend the driver's own connection to Postgres, each of whose statements is a transaction. Raises SQLAlchemyError.

    For what every mail needs: SQLAlchemy's way to it takes longer than the driver does with a statement.
    """
    try:
        with closing(engine.raw_connection()) as pooled:
            connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
            try:
                connection.autocommit = True
                yield connection
                connection.autocommit = False
            except (psycopg.IntegrityError, psycopg.DataError, psycopg.ProgrammingError):
                # The statement was wrong; the connection is as good as before.
                connection.autocommit = False
                raise
            except BaseException as error:
                # Nobody else gets it as it is now.
                pooled.invalidate(error)
                if connection.closed:
                    # The others lead to the same server.
                    engine.dispose()
                raise
    except psycopg.Error as error:
        raise DBAPIError.instance(None, None, error, psycopg.Error, dialect=engine.dialect) from error


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver must not begin transactions by itself: on_begin does.
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A read that turns into a write fails at once when another wrote meanwhile, whatever the
        # timeout. So whatever may write takes the write lock first; only pages that are merely shown do not.
        reads = has_request_context() and request.method in {"GET", "HEAD"}
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _tune_postgres(engine: Engine, seconds: float) -> None:
    """Let no request wait longer than that for an answer, and none fail for a server that was restarted.

    libpq itself would wait without end for a frozen server. And SQLAlchemy's `pool_pre_ping` asks every time, which
    takes as long as most of what is asked afterwards. The price: where a server vanishes without a word, as when a
    machine dies, what uses each connection of the last seconds fails once.
    """

    class BoundedConnection(psycopg.Connection[Any]):
        # Releasing it counts, too: that comes right after an answer, mostly.
        answered_at: float | None = None

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            if timeout is None and has_request_context():
                try:
                    answer = super().wait(gen, interval, seconds)
                except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - it has no other name
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server did not answer within {seconds} s") from error
            else:
                answer = super().wait(gen, interval, timeout)
            self.answered_at = time.monotonic()
            return answer

        def may_be_gone(self) -> bool:
            """Return whether it rested for long, or said something that nobody asked for: its end, mostly."""
            if self.answered_at is None:
                # A new one: what is asked first will tell. SQLAlchemy would not try a third one.
                return False
            line = select.poll()
            line.register(self.fileno(), select.POLLIN)
            return time.monotonic() - self.answered_at > FRESH_SECONDS or bool(line.poll(0))

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> psycopg.Connection[Any]:
        return BoundedConnection.connect(*arguments, **options)

    @event.listens_for(engine, "checkout")
    def ask_if_in_doubt(connection: Any, _record: Any, _proxy: Any) -> None:
        try:
            if connection.may_be_gone():
                engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            # The others have rested as long, or longer.
            raise InvalidatePoolError(str(error)) from error
