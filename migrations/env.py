"""Runs the migrations on the app's own engine."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from flask import current_app
from sqlalchemy import TypeDecorator

from webapp.db.locks import one_at_a_time
from webapp.db.outages import DatabaseAway, reason

db = current_app.extensions["migrate"].db


def render_item(kind: str, item: Any, _context: object) -> str | Literal[False]:
    """Write a type of ours as the one that it is stored as: a migration must not change with our code."""
    return f"sa.{item.impl_instance!r}" if kind == "type" and isinstance(item, TypeDecorator) else False


def run() -> None:
    with db.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # Building an index takes minutes, and so may what is computed here between two statements. Who waits for a
            # lock still fails as soon as everybody else does: whoever stands behind it waits too.
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '10min'")
            connection.commit()
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            compare_type=True,
            render_item=render_item,
            # SQLite too: extensions.py begins its transactions.
            transactional_ddl=True,
            # One transaction each, so that an interrupted upgrade goes on where it stopped.
            transaction_per_migration=True,
        )
        # What is to do is looked up inside: whoever waited finds it done.
        with one_at_a_time(connection, "migrations"), context.begin_transaction():
            context.run_migrations()


try:
    run()
except (DatabaseAway, OSError) as error:
    # Nothing that a traceback would explain.
    raise SystemExit(f"the database does not answer: {reason(error)}") from None
