"""The extensions that rooms share, unbound; create_app() binds them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import psycopg
from flask import Flask, has_request_context, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Index, MetaData, Row, Table, Text, UpdateBase, event, func, select, text
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import DeclarativeBase, registry

from webapp import clock
from webapp.broker import FlaskHuey
from webapp.languages import Babel
from webapp.smtp import Mail
from webapp.storage import limits_storage


class Base(DeclarativeBase):
    """What tables have in common: UTC times, and constraints with predictable names."""

    registry = registry(type_annotation_map={datetime: clock.UTCDateTime()})
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )


# Rows stay readable after their commit: without this, reading one attribute costs a SELECT.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})
migrate = Migrate(compare_type=True, render_as_batch=False)
login = LoginManager()
babel = Babel()
mail = Mail()
huey = FlaskHuey()
# Windows that move: with fixed ones twice as many would pass around each full hour.
limiter = Limiter(get_remote_address, strategy="moving-window")

if TYPE_CHECKING:
    # Flask-SQLAlchemy makes its Model at run time, which a type checker cannot follow.
    Model = Base
else:
    Model = db.Model


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows that are so, on every engine."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def table(model: type[Base]) -> Table:
    """Return a model's table: statements about it take no part in what the ORM keeps of its rows."""
    return cast("Table", model.__table__)


def lock(*keys: str) -> None:
    """Let nobody else hold one of these until the commit. On SQLite writers come one by one already."""
    if db.engine.dialect.name == "postgresql":
        # In one order, whoever asks: else two that ask for the same ones deadlock.
        key = func.unnest(array(sorted(keys), type_=Text)).column_valued("key")
        db.session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(key, 0))))


def execute_together(statements: tuple[UpdateBase, ...], parameters: Mapping[str, Any]) -> Row[Any] | None:
    """Execute statements of which none needs what another writes; return the first row of the first one.

    On Postgres in one round trip. What they have in common is named by parameters, so that they are made once.
    """
    connection = db.session.connection()
    if connection.dialect.name == "postgresql":
        return connection.execute(_together(statements), parameters).first()
    results = [connection.execute(statement, parameters) for statement in statements]
    return results[0].first()


@cache
def _together(statements: tuple[UpdateBase, ...]) -> UpdateBase:
    first, *others = statements
    return first.add_cte(*(other.cte(f"other_{n}") for n, other in enumerate(others)))


def init_app(app: Flask) -> None:
    db.init_app(app)
    migrate.init_app(app, db)
    login.init_app(app)
    babel.init_app(app)
    mail.init_app(app)
    huey.init_app(app)
    app.config.update(limits_storage(app.config["REDIS_URL"]))
    limiter.init_app(app)
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            _tune_sqlite(db.engine)
        else:
            _bound_answers(db.engine, app.config["DATABASE_TIMEOUT"])


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


def _bound_answers(engine: Engine, seconds: float) -> None:
    """Let no request wait longer for an answer of Postgres: libpq itself would wait without end for a frozen server."""

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            if timeout is not None or not has_request_context():
                return super().wait(gen, interval, timeout)
            try:
                return super().wait(gen, interval, seconds)
            except psycopg.errors._WaitTimeout as error:  # noqa: SLF001 - it has no other name
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the server did not answer within {seconds} s") from error

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> psycopg.Connection[Any]:
        return BoundedConnection.connect(*arguments, **options)
