"""State that workers share: the circuit breaker for the mail server, and their heartbeats."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    breaker = op.create_table(
        "mail_breaker",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True)),
        sa.Column("reason", sa.String(300)),
        sa.Column("probe_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_mail_breaker"),
    )
    op.bulk_insert(breaker, [{"id": 1}])
    op.create_table(
        "worker_heartbeats",
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("host", sa.String(60), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_worker_heartbeats"),
    )


def downgrade() -> None:
    op.drop_table("worker_heartbeats")
    op.drop_table("mail_breaker")
