"""Counting emails to one address, and in all.

On PostgreSQL the indexes are built without blocking writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    on_postgresql = context.get_context().dialect.name == "postgresql"
    op.add_column("outgoing_emails", sa.Column("budget", sa.String(280)), if_not_exists=on_postgresql or None)
    if on_postgresql:
        with context.get_context().autocommit_block():
            # An interrupted build leaves an invalid index.
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_outgoing_emails_sent_at")
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_outgoing_emails_budget")
            create_indexes(concurrently=True)
    else:
        create_indexes(concurrently=False)


def create_indexes(*, concurrently: bool) -> None:
    sent = sa.text("sent_at IS NOT NULL")
    op.create_index(
        "ix_outgoing_emails_sent_at",
        "outgoing_emails",
        ["sent_at"],
        postgresql_where=sent,
        sqlite_where=sent,
        postgresql_concurrently=concurrently,
    )
    op.create_index(
        "ix_outgoing_emails_budget",
        "outgoing_emails",
        ["budget", "created_at"],
        postgresql_concurrently=concurrently,
    )


def downgrade() -> None:
    op.drop_index("ix_outgoing_emails_budget", "outgoing_emails")
    op.drop_index("ix_outgoing_emails_sent_at", "outgoing_emails")
    op.drop_column("outgoing_emails", "budget")
