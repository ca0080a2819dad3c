"""The declarative base of all tables, and what their definitions share."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, cast

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Index, MetaData, Table, text
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


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows that are so, on every engine."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


def table(model: type[Base]) -> Table:
    """Return a model's table: statements about it take no part in what the ORM keeps of its rows."""
    return cast("Table", model.__table__)
