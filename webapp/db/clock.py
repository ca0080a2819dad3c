"""Time: UTC everywhere, and written by the database where processes must agree."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, DateTime, Float, and_, literal
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator


def now() -> datetime:
    """Return this machine's time, aware, in UTC: for showing, not for deciding."""
    return datetime.now(UTC)


# Elapsed time. On Linux it goes on while the machine sleeps, which time.monotonic() does not.
BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# What was just written may be a moment ahead of whoever reads it.
MOMENT = 1.0


def ticks() -> float:
    """Return this machine's elapsed time in seconds: for how long something is held, whatever happened meanwhile."""
    return time.clock_gettime(BOOTTIME)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime, on engines with and without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class db_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's wall clock, `seconds` from now: one clock for all workers.

    Unlike CURRENT_TIMESTAMP it moves on within a transaction.
    """

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | BindParameter[float] = 0) -> None:
        super().__init__(seconds if isinstance(seconds, BindParameter) else literal(float(seconds), Float))


@compiles(db_now, "postgresql")
def _on_postgresql(element: db_now, compiler: SQLCompiler, **options: Any) -> str:
    # The time at which the statement began. Of clock_timestamp(), which may change from row to row, the planner
    # knows nothing: it would use no index, or expect a third of all rows behind it.
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(db_now, "sqlite")
def _on_sqlite(element: db_now, compiler: SQLCompiler, **options: Any) -> str:
    # The text has the form in which SQLAlchemy stores times, so the two compare as text.
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


class seconds_between(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """How much later the second time is."""

    type = Float()
    inherit_cache = True


@compiles(seconds_between, "postgresql")
def _between_on_postgresql(element: seconds_between, compiler: SQLCompiler, **options: Any) -> str:
    first, second = (compiler.process(clause, **options) for clause in element.clauses)
    return f"extract(epoch from ({second} - {first}))::float8"


@compiles(seconds_between, "sqlite")
def _between_on_sqlite(element: seconds_between, compiler: SQLCompiler, **options: Any) -> str:
    first, second = (compiler.process(clause, **options) for clause in element.clauses)
    return f"((julianday({second}) - julianday({first})) * 86400.0)"


def is_ahead(at: Any, most: float) -> ColumnElement[bool]:
    """Return whether a time is still to come.

    What lies more than `most` seconds ahead was written while the clock was wrong, and counts as now.
    """
    return and_(at > db_now(), at <= db_now(most))


def was_lately(at: Any, seconds: float) -> ColumnElement[bool]:
    """Return whether a time was within the last seconds; one that is still to come was not."""
    return and_(at > db_now(-seconds), at <= db_now(MOMENT))
