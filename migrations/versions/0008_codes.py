"""Codes to type instead of following a link: when they expire, and wrong tries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("verify_emails", sa.Column("code_expires_at", sa.DateTime(timezone=True)))
    op.create_table(
        "code_tries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer()),
        sa.Column("email_key", sa.String(254), nullable=False),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_code_tries"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_code_tries_user_id", ondelete="SET NULL"),
    )
    op.create_index("ix_code_tries_user_id", "code_tries", ["user_id"])
    op.create_index("ix_code_tries_email_key", "code_tries", ["email_key", "tried_at"])


def downgrade() -> None:
    op.drop_table("code_tries")
    op.drop_column("verify_emails", "code_expires_at")
