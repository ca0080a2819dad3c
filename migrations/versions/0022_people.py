"""Locked accounts, when a session's password was last given, and finding people by the beginning of their names.

On PostgreSQL the indexes are built without blocking writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

revision = "0022"
down_revision = "0021"

NAMED = sa.text("full_name <> ''")


def upgrade() -> None:
    if "locked_at" not in columns("users"):
        op.add_column("users", sa.Column("locked_at", sa.DateTime(timezone=True)))
    if "proved_at" not in columns("user_sessions"):
        op.add_column("user_sessions", sa.Column("proved_at", sa.DateTime(timezone=True)))
    if not on_postgresql():
        op.create_index("ix_users_full_name", "users", [sa.text("lower(full_name)")], sqlite_where=NAMED)
        return
    with context.get_context().autocommit_block():
        # An interrupted build leaves an invalid index.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_users_full_name")
        op.create_index(
            "ix_users_full_name",
            "users",
            [sa.text("lower(full_name) text_pattern_ops")],
            postgresql_where=NAMED,
            postgresql_concurrently=True,
        )
        # Byte order, in which names with the same beginning are adjacent; it serves equality as well.
        replace_index("varchar_pattern_ops")


def downgrade() -> None:
    if on_postgresql():
        with context.get_context().autocommit_block():
            replace_index("varchar_ops")
    op.drop_index("ix_users_full_name", "users")
    op.drop_column("user_sessions", "proved_at")
    op.drop_column("users", "locked_at")


def replace_index(operators: str) -> None:
    """Rebuild the index of usernames; the old one serves until the new one is ready."""
    op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_users_username_key_new")
    op.create_index(
        "ix_users_username_key_new",
        "users",
        ["username_key"],
        postgresql_ops={"username_key": operators},
        postgresql_concurrently=True,
    )
    op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_users_username_key")
    op.execute("ALTER INDEX ix_users_username_key_new RENAME TO ix_users_username_key")


def columns(table: str) -> set[str]:
    return {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}


def on_postgresql() -> bool:
    return context.get_context().dialect.name == "postgresql"
