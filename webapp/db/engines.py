"""Setting up connections to each kind of database, and how long it may take to answer."""

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

# A connection to Postgres that rested for longer is asked whether it still lives.
FRESH_SECONDS = 5.0

# Postgres ends what one of us leaves behind who froze, or whose machine is gone: others wait for its locks, and a
# frozen process's system answers for it. Who waits for a lock of another fails, and tries again.
BOUNDS = {
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
}
# What the URL, the role or the database sets is meant, and what a release does not have is left out. Not sent as
# startup options, which poolers refuse.
BIND = """
    SELECT set_config(name, bound, false) FROM unnest(%s::text[], %s::text[]) AS bounds (name, bound)
    JOIN pg_settings USING (name) WHERE source NOT IN ('client', 'user', 'database', 'database user')
"""


def tune(engine: Engine, seconds: float) -> Outage:
    """Return what is known of whether it is away. `seconds`: how long a request may wait for an answer of Postgres."""
    outage = Outage()

    @event.listens_for(engine, "handle_error", retval=True)
    def tell_when_away(context: ExceptionContext) -> DatabaseAway | None:
        error = context.original_exception
        # What is missing although the migrations were all there is a mistake in a statement.
        if not is_away(error) or (is_unmigrated(error) and outage.was_migrated):
            return None
        # All connections lead to the same server, or to one that may only be read by now. (That of an SQLite file with
        # a statement amid it would keep its lock until Python finds the pieces.)
        context.is_disconnect = context.is_disconnect or not keeps_connection(error)
        return outage.note(error)

    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    else:
        _tune_postgres(engine, seconds)

    # The last to be asked: by then the connection was found to live.
    @event.listens_for(engine, "checkout")
    def on_checkout(_connection: Any, _record: Any, _proxy: Any) -> None:
        outage.note_answer()

    return outage


class Unsuitable(psycopg.OperationalError):
    """This database can never serve."""


def refuse_unsuitable(config: Mapping[str, Any]) -> None:
    """Raise ConfigError when the database answers, and can never serve; one that is away is waited for."""
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
    connection.autocommit = False


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
        connection = BoundedConnection.connect(*arguments, **options)
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
            # The others have rested as long, or longer.
            raise InvalidatePoolError(str(error)) from error


def engine_options(config: dict[str, Any]) -> dict[str, Any]:
    # An error's text must not carry addresses into the log.
    options: dict[str, Any] = {"hide_parameters": True}
    if config["DATABASE_URL"].startswith("sqlite"):
        return options
    timeout = config["DATABASE_TIMEOUT"]
    return options | {
        "pool_size": config["DATABASE_POOL_SIZE"],
        "max_overflow": 0,
        "pool_timeout": timeout,
        # The others may rest: one that was used lately need not be asked whether it lives.
        "pool_use_lifo": True,
        "connect_args": {
            "connect_timeout": timeout,
            # A connection into a black hole ends, instead of holding a request for minutes.
            "tcp_user_timeout": timeout * 1000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "application_name": config["APP_NAME"],
            # Of several hosts the primary; and one that may only be read is as good as away.
            "target_session_attrs": "read-write",
            **conninfo_to_dict(config["DATABASE_URL"]),
        },
    }
