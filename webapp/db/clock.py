"""Time: UTC everywhere, and from the database's clock where processes must agree."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Float, and_, literal
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeDecorator


def now() -> datetime:
    """Return this machine's time, aware, in UTC: for display, not for decisions."""
    return datetime.now(UTC)


# Elapsed time. On Linux it keeps counting while the machine sleeps, unlike time.monotonic().
BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

# A time that was just written may be a moment ahead of the statement that reads it.
MOMENT = 1.0


def ticks() -> float:
    """Return this machine's elapsed time in seconds, which a change of its clock does not affect."""
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

    Unlike CURRENT_TIMESTAMP, it advances within a transaction.
    """

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | ColumnElement[float] = 0) -> None:
        super().__init__(seconds if isinstance(seconds, ColumnElement) else literal(float(seconds), Float))


@compiles(db_now, "postgresql")
def _on_postgresql(element: db_now, compiler: SQLCompiler, **options: Any) -> str:
    # The start of the statement. clock_timestamp() may change from row to row, so the planner would not use an index,
    # or would expect a third of all rows to match.
    return f"(statement_timestamp() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(db_now, "sqlite")
def _on_sqlite(element: db_now, compiler: SQLCompiler, **options: Any) -> str:
    # The format in which SQLAlchemy stores times, so that both compare as text.
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


class seconds_between(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """The seconds from the first time to the second."""

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
    """Return whether a time is in the future.

    A time more than `most` seconds ahead was written while the clock was wrong, and counts as now.
    """
    return and_(at > db_now(), at <= db_now(most))


def was_lately(at: Any, seconds: float) -> ColumnElement[bool]:
    """Return whether a time is within the last `seconds`; a time in the future is not."""
    return and_(at > db_now(-seconds), at <= db_now(MOMENT))
