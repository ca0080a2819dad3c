"""Indexes for lists, plots and pruning, which keep them fast at a million emails.

On PostgreSQL they are built without blocking writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

from contextlib import ExitStack

import sqlalchemy as sa
from alembic import context, op

revision = "0013"
down_revision = "0012"

INDEXES: list[tuple[str, str, list[str], str | None]] = [
    ("ix_outgoing_emails_created", "outgoing_emails", ["created_at", "id"], None),
    ("ix_outgoing_emails_dead", "outgoing_emails", ["created_at", "id"], "status = 'dead'"),
    ("ix_outgoing_emails_finished", "outgoing_emails", ["finished_at"], "finished_at IS NOT NULL"),
    ("ix_delivery_attempts_finished_at", "delivery_attempts", ["finished_at"], None),
    ("ix_users_purge_at", "users", ["purge_at"], "purge_at IS NOT NULL"),
]


def upgrade() -> None:
    with ExitStack() as stack:
        if on_postgresql():
            stack.enter_context(context.get_context().autocommit_block())
        for name, table, columns, where in INDEXES:
            if on_postgresql():
                # An interrupted build leaves an invalid index.
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            condition = sa.text(where) if where else None
            op.create_index(
                name,
                table,
                columns,
                postgresql_where=condition,
                sqlite_where=condition,
                postgresql_concurrently=on_postgresql(),
            )


def downgrade() -> None:
    for name, table, _columns, _where in reversed(INDEXES):
        op.drop_index(name, table)


def on_postgresql() -> bool:
    return context.get_context().dialect.name == "postgresql"
