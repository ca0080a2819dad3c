"""Columns for verification. Existing users stay, unverified, and are never purged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Constant defaults do not rewrite the table, and old code that does not know the columns can still insert.
    op.add_column("users", sa.Column("username_key", sa.String(256), server_default="", nullable=False))
    op.add_column("users", sa.Column("email_key", sa.String(254), server_default="", nullable=False))
    op.add_column("users", sa.Column("email_verified_at", sa.DateTime(timezone=True)))
    op.add_column("users", sa.Column("role", sa.String(20), server_default="user", nullable=False))
    op.add_column("users", sa.Column("purge_at", sa.DateTime(timezone=True)))
    op.add_column("users", sa.Column("locale", sa.String(20), server_default="en", nullable=False))


def downgrade() -> None:
    for column in ("locale", "purge_at", "role", "email_verified_at", "email_key", "username_key"):
        op.drop_column("users", column)
