"""Runs the migrations on the app's own engine."""

from __future__ import annotations

from alembic import context
from flask import current_app

db = current_app.extensions["migrate"].db


def run() -> None:
    with db.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            # Who waits for a lock makes everybody behind it wait: better to fail, and to be run again.
            connection.exec_driver_sql("SET lock_timeout = '5s'")
            connection.commit()
        context.configure(
            connection=connection,
            target_metadata=db.metadata,
            compare_type=True,
            # SQLite too: extensions.py begins its transactions.
            transactional_ddl=True,
            # One transaction each, so that an interrupted upgrade goes on where it stopped.
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run()
