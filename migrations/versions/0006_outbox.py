"""The outbox: emails to send, and each attempt to send one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

QUEUED = sa.text("status = 'queued'")
SENDING = sa.text("status = 'sending'")
ACTIVE = sa.text("status IN ('queued', 'sending')")


def upgrade() -> None:
    op.create_table(
        "outgoing_emails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("message_id", sa.String(320), nullable=False),
        sa.Column("dedupe_key", sa.String(320), nullable=False),
        sa.Column("user_id", sa.Integer()),
        sa.Column("verify_email_id", sa.Uuid()),
        sa.Column("template", sa.String(50)),
        sa.Column("locale", sa.String(20)),
        sa.Column("to_address", sa.String(254), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("status", sa.String(10), server_default="queued", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("lease_expiries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("hinted_at", sa.DateTime(timezone=True)),
        sa.Column("lease_token", sa.Uuid()),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("locked_by", sa.String(100)),
        sa.Column("in_doubt", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("last_error_class", sa.String(50)),
        sa.Column("last_smtp_code", sa.Integer()),
        sa.Column("last_error", sa.String(300)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_outgoing_emails"),
        sa.UniqueConstraint("message_id", name="uq_outgoing_emails_message_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_outgoing_emails_user_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(
            ["verify_email_id"],
            ["verify_emails.id"],
            name="fk_outgoing_emails_verify_email_id",
            ondelete="SET NULL",
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'sending', 'sent', 'dead', 'canceled')", name=op.f("ck_outgoing_emails_status")
        ),
        sa.CheckConstraint("(status = 'sending') = (lease_token IS NOT NULL)", name=op.f("ck_outgoing_emails_lease")),
    )
    _index("ix_outgoing_emails_due", ["priority", "next_attempt_at"], where=QUEUED)
    _index("ix_outgoing_emails_next", ["next_attempt_at"], where=QUEUED)
    _index("ix_outgoing_emails_expiring", ["expires_at"], where=QUEUED)
    _index("ix_outgoing_emails_leased", ["lease_until"], where=SENDING)
    _index("uq_outgoing_emails_active_dedupe_key", ["dedupe_key"], where=ACTIVE, unique=True)
    _index("ix_outgoing_emails_user_id", ["user_id"])
    _index("ix_outgoing_emails_verify_email_id", ["verify_email_id"])
    op.create_table(
        "delivery_attempts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("email_id", sa.Uuid(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(20), nullable=False),
        sa.Column("phase", sa.String(20)),
        sa.Column("code", sa.Integer()),
        sa.Column("reply", sa.String(300)),
        sa.Column("worker", sa.String(100)),
        sa.PrimaryKeyConstraint("id", name="pk_delivery_attempts"),
        sa.ForeignKeyConstraint(
            ["email_id"], ["outgoing_emails.id"], name="fk_delivery_attempts_email_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_delivery_attempts_email_id", "delivery_attempts", ["email_id"])


def downgrade() -> None:
    op.drop_table("delivery_attempts")
    op.drop_table("outgoing_emails")


def _index(name: str, columns: list[str], *, where: sa.TextClause | None = None, unique: bool = False) -> None:
    op.create_index(name, "outgoing_emails", columns, unique=unique, postgresql_where=where, sqlite_where=where)
