"""Never reuse a row's id. Nothing to do on PostgreSQL, whose sequences never go back.

SQLite reuses the id of the newest row once that row is deleted, unless the table has AUTOINCREMENT, which takes a new
table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"

TABLES = ("users", "user_sessions", "audit_events", "code_tries", "delivery_attempts")

# The highest id of a deleted user that the audit still mentions.
GONE = """
    SELECT max(number) FROM (
        SELECT CAST(substr(detail, 6) AS INTEGER) AS number FROM audit_events WHERE action = 'account_deleted'
        UNION ALL SELECT CAST(substr(actor, 6) AS INTEGER) FROM audit_events WHERE actor LIKE 'user %'
    )
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    with children_kept():
        for name in TABLES:
            rebuild(name, numbered_once=True)
        begin_after("users", op.get_bind().scalar(sa.text(GONE)) or 0)


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    with children_kept():
        for name in reversed(TABLES):
            rebuild(name, numbered_once=False)


def rebuild(name: str, *, numbered_once: bool) -> None:
    with op.batch_alter_table(
        name,
        recreate="always",
        table_kwargs={"sqlite_autoincrement": numbered_once},
        # The tables that it refers to need not be reflected.
        reflect_kwargs={"resolve_fks": False},
    ):
        pass


def begin_after(table: str, number: int) -> None:
    """Make the next id greater than this number, and than every id in the table."""
    connection = op.get_bind()
    parameters = {"name": table, "number": number}
    held = connection.scalar(sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name"), parameters)
    connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), parameters)
    parameters["number"] = max(number, held or 0)
    connection.execute(sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :number)"), parameters)


@contextmanager
def children_kept() -> Iterator[None]:
    """Run the block in one transaction, with foreign keys off.

    Dropping the old table deletes its rows, which would delete the rows that refer to them. Foreign keys cannot be
    turned off within a transaction.
    """
    driver = cast("sqlite3.Connection", op.get_bind().connection.driver_connection)
    driver.execute("COMMIT")
    driver.execute("PRAGMA foreign_keys = OFF")
    driver.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        driver.execute("ROLLBACK")
        raise
    else:
        driver.execute("COMMIT")
    finally:
        driver.execute("PRAGMA foreign_keys = ON")
        # For Alembic to commit. If it cannot record this migration, running it again does no harm.
        driver.execute("BEGIN IMMEDIATE")
