"""Statements that are made once and executed in one round trip, without the ORM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

from flask import current_app
from psycopg.rows import namedtuple_row
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    FromClause,
    Insert,
    Select,
    Update,
    bindparam,
    exists,
    insert,
    select,
)
from sqlalchemy.sql.visitors import replacement_traverse

from webapp.db import engines, outages
from webapp.db.base import Base, db, table


def row_of(model: type[Base], *named: str, **values: ColumnElement[Any]) -> Select[Any]:
    """Return a row to insert: of parameters that are named as their columns, and of these values."""
    columns = table(model).columns
    parameters = {name: bindparam(name, type_=columns[name].type) for name in named}
    return select(*(value.label(name) for name, value in (parameters | values).items()))


def read_at_once(statement: Any, parameters: dict[str, Any]) -> Any:
    """Return the first row that a statement finds, read in a transaction of its own: for what is asked all the time."""
    if db.engine.dialect.name == "postgresql":
        sql, constants = _compiled(statement)
        with engines.autocommit(db.engine, outages.of(current_app)) as driver:
            return driver.cursor(row_factory=namedtuple_row).execute(sql, constants | parameters).fetchone()
    with db.engine.connect() as connection:
        return connection.execute(statement, parameters).first()


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
    return _compiled(whole)


@cache
def _compiled(statement: Any) -> tuple[str, dict[str, Any]]:
    """Return it as the driver takes it, and the values in it that are no parameters."""
    compiled = statement.compile(dialect=db.engine.dialect)
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
