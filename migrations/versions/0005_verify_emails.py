"""Links that prove an address."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "verify_emails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("email_key", sa.String(254), nullable=False),
        sa.Column("purpose", sa.String(10), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.Column("voided_at", sa.DateTime(timezone=True)),
        sa.Column("void_reason", sa.String(50)),
        sa.PrimaryKeyConstraint("id", name="pk_verify_emails"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_verify_emails_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_verify_emails_user_id", "verify_emails", ["user_id"])
    op.create_index("ix_verify_emails_email_key", "verify_emails", ["email_key"])


def downgrade() -> None:
    op.drop_table("verify_emails")
