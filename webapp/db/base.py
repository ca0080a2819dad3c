"""The declarative base of all tables, and helpers that they share."""

from __future__ import annotations

from contextlib import closing, suppress
from datetime import datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, cast

import psycopg
from flask_sqlalchemy import SQLAlchemy
from psycopg.rows import namedtuple_row
from sqlalchemy import Index, MetaData, Row, Select, Table, TextClause, text
from sqlalchemy.engine import Compiled, Dialect
from sqlalchemy.orm import DeclarativeBase, registry

from webapp.db import clock


class Base(DeclarativeBase):
    """The base of all tables: UTC times, and constraints with predictable names."""

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


# Rows stay readable after a commit: otherwise reading an attribute would cost a SELECT.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})

if TYPE_CHECKING:
    # Flask-SQLAlchemy builds its Model at run time, which a type checker cannot follow.
    Model = Base
else:
    Model = db.Model


# For tables with numeric ids: SQLite would reuse the id of the newest row once that row is deleted.
NUMBERED_ONCE = {"sqlite_autoincrement": True}
NUMBER_MAX = 2**31 - 1


def row_number(text: str | None) -> int | None:
    """Return the text as a row's id, or None if no row can have it."""
    if not text or not text.isascii() or not text.isdigit() or len(text) > len(str(NUMBER_MAX)):
        return None
    return int(text) if 1 <= int(text) <= NUMBER_MAX else None


def keyset_page(
    query: Select[*tuple[Any, ...]], number: Any, *, beyond: int | None, oldest_first: bool
) -> Select[*tuple[Any, ...]]:
    """Order rows by `number`, newest or oldest first, starting after row `beyond`, the last of the previous page."""
    if beyond is not None:
        query = query.where(number > beyond if oldest_first else number < beyond)
    return query.order_by(number if oldest_first else number.desc())


def execute_alone(statement: TextClause, values: dict[str, Any]) -> Row[Any] | None:
    """Execute a statement in a transaction of its own, in one round trip to PostgreSQL; return its first row.

    Raises TypeError unless `values` are exactly its parameters.
    """
    if differing := values.keys() ^ _parameters(statement):
        raise TypeError(f"not both given and written: {', '.join(sorted(differing))}")
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return connection.execute(statement, values).first()


def read_alone(statement: Select[*tuple[Any, ...]], values: dict[str, Any]) -> Any:
    """Return the first row of a query, in a transaction of its own; on PostgreSQL in one round trip.

    That bypasses SQLAlchemy, which would take as long again as the query: proxies ask for every request to another app.
    """
    if db.engine.dialect.name == "postgresql":
        # After an error the query runs again below, where outages are noticed.
        with suppress(psycopg.Error):
            return _read_at_once(statement, values)
    with db.engine.connect() as connection:
        return connection.execute(statement, values).first()


def _read_at_once(statement: Select[*tuple[Any, ...]], values: dict[str, Any]) -> Any:
    compiled = _compiled(statement, db.engine.dialect)
    with closing(db.engine.raw_connection()) as pooled:
        connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
        connection.autocommit = True
        try:
            cursor = connection.cursor(row_factory=namedtuple_row)
            return cursor.execute(compiled.string, compiled.construct_params(values)).fetchone()
        finally:
            connection.autocommit = False


@lru_cache(maxsize=8)
def _compiled(statement: Select[*tuple[Any, ...]], dialect: Dialect) -> Compiled:
    return statement.compile(dialect=dialect)


@cache
def _parameters(statement: TextClause) -> frozenset[str]:
    return frozenset(statement.compile().params)


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Return an index of the rows that match `where`, for every engine."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def table(model: type[Base]) -> Table:
    """Return a model's table: statements on it bypass the ORM's bookkeeping of rows."""
    return cast("Table", model.__table__)
