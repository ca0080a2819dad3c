"""The extensions that rooms share, unbound; create_app() binds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from flask import Flask, current_app
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    FromClause,
    Index,
    Insert,
    MetaData,
    Select,
    Table,
    Text,
    Update,
    bindparam,
    exists,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, registry
from sqlalchemy.sql.visitors import replacement_traverse

from webapp.db import clock, engines, outages
from webapp.i18n import Babel
from webapp.queue.flask_huey import FlaskHuey
from webapp.queue.storage import limits_storage
from webapp.smtp.connection import Mail


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


# For tables whose rows are numbered: SQLite would give the number of the newest row out again, once that is deleted.
NUMBERED_ONCE = {"sqlite_autoincrement": True}


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows that are so, on every engine."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def table(model: type[Base]) -> Table:
    """Return a model's table: statements about it take no part in what the ORM keeps of its rows."""
    return cast("Table", model.__table__)


def row_of(model: type[Base], *named: str, **values: ColumnElement[Any]) -> Select[Any]:
    """Return a row to insert: of parameters that are named as their columns, and of these values."""
    columns = table(model).columns
    parameters = {name: bindparam(name, type_=columns[name].type) for name in named}
    return select(*(value.label(name) for name, value in (parameters | values).items()))


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


def execute_at_once(statements: tuple[Update | Insert, ...], parameters: dict[str, Any]) -> Sequence[Any] | None:
    """Execute statements of which none reads what another writes, and commit: all, or none if the first finds no row.

    Return what the first returns, which inserts get too, as parameters of those names. On Postgres they are one
    statement, which needs no transaction around it, so the caller has none open: that is half of the round trips. They
    name what they have in common by parameters, so that they are made once. An insert is one from a select.
    """
    if db.engine.dialect.name == "postgresql":
        sql, constants = _at_once(statements)
        with engines.autocommit(db.engine, outages.of(current_app)) as driver:
            found: Sequence[Any] | None = driver.execute(sql, constants | parameters).fetchone()
            return found
    first, *others = statements
    connection = db.session.connection()
    row = connection.execute(first, parameters).first()
    if row is None:
        db.session.rollback()
        return None
    for other in others:
        connection.execute(other, parameters | row._asdict() if isinstance(other, Insert) else parameters)
    db.session.commit()
    return row


@cache
def _at_once(statements: tuple[Update | Insert, ...]) -> tuple[str, dict[str, Any]]:
    """Return them as one statement, and the values in it that are no parameters."""
    first, *others = statements
    found = first.cte("found")
    whole = select(found).add_cte(*(_only_if(found, other).cte(f"other_{n}") for n, other in enumerate(others)))
    compiled = whole.compile(dialect=db.engine.dialect)
    # What is not given is missed by the driver, as it should be: it is no constant, though it stands there as None.
    constants = {name: value for name, value in compiled.params.items() if not compiled.binds[name].required}
    return str(compiled), constants


def _only_if(found: FromClause, statement: Update | Insert) -> Update | Insert:
    """Return the statement for when a row was found; an insert has its columns in the place of parameters."""

    def column(element: object, **_: Any) -> ColumnElement[Any] | None:
        return found.columns.get(element.key) if isinstance(element, BindParameter) else None

    was_found = exists().select_from(found).correlate(None)
    if isinstance(statement, Update):
        return statement.where(was_found)
    values = cast("Select[Any]", statement.select).where(was_found)
    values = cast("Select[Any]", replacement_traverse(values, {}, column))
    return insert(statement.table).from_select(values.selected_columns.keys(), values)


def init_app(app: Flask) -> None:
    db.init_app(app)
    login.init_app(app)
    babel.init_app(app)
    mail.init_app(app)
    huey.init_app(app)
    app.config.update(limits_storage(app.config["REDIS_URL"]))
    limiter.init_app(app)
    with app.app_context():
        app.extensions["outage"] = engines.tune(db.engine, app.config["DATABASE_TIMEOUT"])
