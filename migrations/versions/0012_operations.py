"""Operators' work: pausing, the operator in the audit, totals that outlive their rows, a request's id on its email."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    pause = op.create_table(
        "mail_pause",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True)),
        sa.Column("paused_by", sa.String(100)),
        sa.Column("reason", sa.String(300)),
        sa.PrimaryKeyConstraint("id", name="pk_mail_pause"),
    )
    op.bulk_insert(pause, [{"id": 1}])
    op.create_table(
        "totals",
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("label", sa.String(50), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", name="pk_totals"),
    )
    op.add_column("audit_events", sa.Column("actor", sa.String(100)))
    op.add_column("audit_events", sa.Column("detail", sa.String(300)))
    op.add_column("outgoing_emails", sa.Column("request_id", sa.String(64)))


def downgrade() -> None:
    op.drop_column("outgoing_emails", "request_id")
    op.drop_column("audit_events", "detail")
    op.drop_column("audit_events", "actor")
    op.drop_table("totals")
    op.drop_table("mail_pause")
