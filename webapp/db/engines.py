"""Setting up connections to each kind of database, and limiting how long it may take to answer."""

from __future__ import annotations

import select
import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import psycopg
from flask import has_request_context, request
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.exc import InvalidatePoolError

from webapp.db.outages import DatabaseAway, Outage, is_away, is_unmigrated, keeps_connection
from webapp.setting_types import ConfigError

# A server that has not answered for this long counts as frozen, and another may have replaced it. No statement runs for
# longer (see `statement_timeout`), except in migrations, which lift both bounds: migrations/env.py.
LONGEST_ANSWER = 40.0

# A connection to PostgreSQL that was idle for longer is pinged before use.
FRESH_SECONDS = 5.0

# PostgreSQL ends the transactions of a client that froze or whose machine is gone, since others wait for its locks. (A
# frozen process's kernel still answers keepalives.) A statement that waits too long for a lock fails, and is retried.
BOUNDS = {
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}
# Leaves alone what the URL, the role or the database sets, and skips settings that the server's release lacks. Not sent
# as startup options, which connection poolers refuse.
BIND = """
    SELECT set_config(name, bound, false) FROM unnest(%s::text[], %s::text[]) AS bounds (name, bound)
    JOIN pg_settings USING (name) WHERE source NOT IN ('client', 'user', 'database', 'database user')
"""


def tune(engine: Engine, outage: Outage, seconds: float) -> None:
    """Set up the engine to tell `outage`. `seconds`: how long a request may wait for an answer from PostgreSQL."""

    @event.listens_for(engine, "handle_error", retval=True)
    def tell_when_away(context: ExceptionContext) -> DatabaseAway | None:
        error = context.original_exception
        # If all migrations were applied, a missing table or column is a bug in a statement.
        if not is_away(error) or (is_unmigrated(error) and outage.was_migrated):
            return None
        # Drop all connections: they lead to the same server, or to one that is read-only by now. (A busy SQLite file is
        # excepted: dropped in the middle of a statement, its connection keeps its lock until garbage collection.)
        context.is_disconnect = context.is_disconnect or not keeps_connection(error)
        return outage.note(error)

    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    else:
        _tune_postgres(engine, seconds)

    # Registered last: by then the connection has proved to be alive.
    @event.listens_for(engine, "checkout")
    def on_checkout(_connection: Any, _record: Any, _proxy: Any) -> None:
        outage.note_answer()


class Unsuitable(psycopg.OperationalError):
    """This database can never serve."""


def refuse_unsuitable(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the database answers but can never serve; one that is away may come back."""
    if config["DATABASE_URL"].startswith("sqlite"):
        return
    try:
        with psycopg.connect(**config["SQLALCHEMY_ENGINE_OPTIONS"]["connect_args"]) as connection:
            _check(connection)
    except Unsuitable as error:
        raise ConfigError([f"DATABASE_URL: {error}"]) from None
    except psycopg.Error:
        return


def _check(connection: psycopg.Connection[Any]) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {None, "UTF8"}:
        raise Unsuitable(f"must name a database in UTF8, not {encoding}: createdb -E UTF8 -T template0")


def _bind(connection: psycopg.Connection[Any]) -> None:
    connection.autocommit = True
    connection.execute(BIND, [list(BOUNDS), list(BOUNDS.values())])
    process = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.autocommit = False
    if process != (connection.info.backend_pid,):
        # We are behind a pooler: a statement prepared in one backend may be executed in another.
        connection.prepare_threshold = None


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: Any) -> None:
        # The driver must not begin transactions on its own: on_begin does.
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        # A transaction that reads first and then writes fails at once if another wrote in between, whatever the
        # timeout. So transactions take the write lock at their beginning, except in requests that only show a page.
        reads = has_request_context() and request.method in {"GET", "HEAD"}
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection with a timeout for every answer, and which can tell that it may be gone."""

    # The timeout for an answer in seconds: during a request, and otherwise.
    request_timeout: float | None = None
    timeout: float | None = None
    # When the server last answered, also a rollback on release: that usually follows an answer at once.
    answered_at: float | None = None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        longest = timeout or (self.request_timeout if has_request_context() else self.timeout)
        try:
            answer = super().wait(gen, interval, longest)
        except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - it has no other name
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server did not answer within {longest} s") from error
        self.answered_at = time.monotonic()
        return answer

    def rollback(self) -> None:
        try:
            super().rollback()
        except psycopg.Error:
            # The connection is gone and its transaction with it, so the rollback is done: a finished page can still be
            # sent. The pool replaces the closed connection.
            if not self.closed:
                raise

    def may_be_gone(self) -> bool:
        """Return whether it was idle for long, or has unexpected data to read: usually that it was closed."""
        if self.answered_at is None:
            # A new connection: its first query will tell. SQLAlchemy would not try a third one.
            return False
        line = select.poll()
        line.register(self.fileno(), select.POLLIN)
        return time.monotonic() - self.answered_at > FRESH_SECONDS or bool(line.poll(0))


def _tune_postgres(engine: Engine, seconds: float) -> None:
    """Let no request wait longer than `seconds` for an answer, no worker forever, and none fail for a restart.

    libpq itself would wait forever for a frozen server. SQLAlchemy's `pool_pre_ping` pings before every use, which
    takes as long as most queries. The price of pinging less: if a server vanishes silently, as when its machine dies,
    the next use of each recently used connection fails once.
    """

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> psycopg.Connection[Any]:
        connection = BoundedConnection.connect(*arguments, **options)
        connection.request_timeout, connection.timeout = seconds, LONGEST_ANSWER
        with ExitStack() as closing_it:
            closing_it.callback(connection.close)
            _check(connection)
            _bind(connection)
            closing_it.pop_all()
        return connection

    @event.listens_for(engine, "checkout")
    def ask_if_in_doubt(connection: Any, _record: Any, _proxy: Any) -> None:
        try:
            if connection.may_be_gone():
                engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            # The other connections were idle for as long, or longer.
            raise InvalidatePoolError(str(error)) from error


def engine_options(config: dict[str, Any]) -> dict[str, Any]:
    # Error messages must not carry addresses into the log.
    options: dict[str, Any] = {"hide_parameters": True}
    if config["DATABASE_URL"].startswith("sqlite"):
        return options
    timeout = config["DATABASE_TIMEOUT"]
    return options | {
        "pool_size": config["DATABASE_POOL_SIZE"],
        "max_overflow": 0,
        "pool_timeout": timeout,
        # Prefer a recently used connection, which needs no ping.
        "pool_use_lifo": True,
        "connect_args": {
            "connect_timeout": timeout,
            # Ends a connection whose packets get lost, instead of blocking a request for minutes.
            "tcp_user_timeout": timeout * 1000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": config["APP_NAME"],
            # Selects the primary among several hosts; a read-only server is as good as away.
            "target_session_attrs": "read-write",
            **conninfo_to_dict(config["DATABASE_URL"]),
        },
    }
