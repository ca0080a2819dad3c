"""The declarative base of all tables, and what their definitions share."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Executable, Index, MetaData, Row, Table, TextClause, text
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


# Rows stay readable after their commit: without this, reading one attribute costs a SELECT.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})

if TYPE_CHECKING:
    # Flask-SQLAlchemy makes its Model at run time, which a type checker cannot follow.
    Model = Base
else:
    Model = db.Model


# For tables whose rows are numbered: SQLite would give the number of the newest row out again, once that is deleted.
NUMBERED_ONCE = {"sqlite_autoincrement": True}
NUMBER_MAX = 2**31 - 1


def row_number(text: str | None) -> int | None:
    """Return the number that this is, if a row may have it."""
    if not text or not text.isascii() or not text.isdigit() or len(text) > len(str(NUMBER_MAX)):
        return None
    return int(text) if 1 <= int(text) <= NUMBER_MAX else None


def execute_alone(statement: TextClause, values: dict[str, Any]) -> Row[Any] | None:
    """Execute a statement in a transaction of its own, one round trip to Postgres; return its first row.

    Raises TypeError when one of the values is none of its parameters, or the other way round.
    """
    if differing := values.keys() ^ _parameters(statement):
        raise TypeError(f"not both given and written: {', '.join(sorted(differing))}")
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        return connection.execute(statement, values).first()


def read_alone(statement: Executable, values: dict[str, Any]) -> Row[Any] | None:
    """Return the first row that a statement finds, in a transaction of its own; on Postgres in one round trip."""
    with db.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
        return connection.execute(statement, values).first()


@cache
def _parameters(statement: TextClause) -> frozenset[str]:
    return frozenset(statement.compile().params)


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows that are so, on every engine."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def table(model: type[Base]) -> Table:
    """Return a model's table: statements about it take no part in what the ORM keeps of its rows."""
    return cast("Table", model.__table__)
