"""Runs the migrations on the app's own engine."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from alembic import context
from flask import current_app
from sqlalchemy import TypeDecorator

from webapp.db.locks import one_at_a_time
from webapp.db.outages import DatabaseAway, reason

db = current_app.extensions["migrate"].db

# SQLAlchemy can't read an index on lower(…) from SQLite; on PostgreSQL it is compared, too.
warnings.filterwarnings("ignore", ".*expression-based index")


def render_item(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Render a custom type as the type that it is stored as: a migration must not change with our code."""
    return f"sa.{item.impl_instance!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


def run() -> None:
    with db.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # Building an index takes minutes, and so may Python's work between two statements. The limit on waiting for
            # a lock stays: everybody who queues behind a waiting migration waits too.
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '10min'")
            connection.commit()
            connection.connection.driver_connection.timeout = None
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            compare_type=True,
            render_item=render_item,
            # On SQLite too: webapp/db/engines.py begins its transactions.
            transactional_ddl=True,
            # One transaction each, so that an interrupted upgrade continues where it stopped.
            transaction_per_migration=True,
        )
        # Pending migrations are looked up inside the lock: a process that waited finds them done.
        with one_at_a_time(connection, "migrations"), context.begin_transaction():
            context.run_migrations()


try:
    run()
except (DatabaseAway, OSError) as error:
    # A traceback would explain nothing.
    raise SystemExit(f"the database does not answer: {reason(error)}") from None
