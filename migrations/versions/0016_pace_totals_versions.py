"""Turns for emails, totals that count rows once, a worker's version, and indexes for operators' queries.

On PostgreSQL the indexes are built without blocking writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import context, op

revision = "0016"
down_revision = "0015"

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

INDEXES: list[tuple[str, list[str | sa.TextClause], str | None]] = [
    ("ix_outgoing_emails_address", [sa.text("lower(to_address)"), "created_at", "id"], None),
    ("ix_outgoing_emails_code", ["last_smtp_code", "created_at", "id"], "last_smtp_code <> 250"),
    ("ix_outgoing_emails_template", ["template", "created_at", "id"], "template <> 'verify_email'"),
    ("ix_outgoing_emails_canceled", ["created_at", "id"], "status = 'canceled'"),
    ("ix_outgoing_emails_reasons", ["last_error_class", "last_smtp_code", "created_at"], "status = 'dead'"),
]


def upgrade() -> None:
    if not has_table("mail_pace"):
        op.bulk_insert(
            op.create_table(
                "mail_pace",
                sa.Column("id", sa.Integer(), nullable=False),
                sa.Column("next_at", sa.DateTime(timezone=True)),
                sa.PrimaryKeyConstraint("id", name="pk_mail_pace"),
            ),
            [{"id": 1}],
        )
        op.bulk_insert(
            op.create_table(
                "totals_until",
                sa.Column("name", sa.String(50), nullable=False),
                sa.Column("until", sa.DateTime(timezone=True), nullable=False),
                sa.PrimaryKeyConstraint("name", name="pk_totals_until"),
            ),
            [{"name": name, "until": LONG_AGO} for name in ("attempts", "accepted", "accepted_seconds", "events")],
        )
        op.create_table(
            "totals_by_hour",
            sa.Column("start", sa.DateTime(timezone=True), nullable=False),
            sa.Column("name", sa.String(50), nullable=False),
            sa.Column("label", sa.String(50), nullable=False),
            sa.Column("value", sa.Double(), nullable=False),
            sa.PrimaryKeyConstraint("start", "name", "label", name="pk_totals_by_hour"),
        )
        # Until now, the total of accepted emails held only those whose rows are gone.
        op.execute(
            "INSERT INTO totals (name, label, value)"
            " SELECT 'accepted_pruned', '', sum(value) FROM totals WHERE name = 'accepted' HAVING count(*) > 0"
        )
        op.add_column("worker_heartbeats", sa.Column("version", sa.String(50)))
    with ExitStack() as stack:
        if on_postgresql():
            stack.enter_context(context.get_context().autocommit_block())
        for name, columns, where in INDEXES:
            if on_postgresql():
                # An interrupted build leaves an invalid index.
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            condition = sa.text(where) if where else None
            op.create_index(
                name,
                "outgoing_emails",
                columns,
                postgresql_where=condition,
                # SQLite's planner cannot use an index with <> in its condition.
                sqlite_where=condition if where and "<>" not in where else None,
                postgresql_concurrently=on_postgresql(),
            )


def downgrade() -> None:
    for name, _columns, _where in reversed(INDEXES):
        op.drop_index(name, "outgoing_emails")
    op.drop_column("worker_heartbeats", "version")
    op.drop_table("totals_by_hour")
    op.drop_table("totals_until")
    op.drop_table("mail_pace")


def has_table(name: str) -> bool:
    return sa.inspect(op.get_bind()).has_table(name)


def on_postgresql() -> bool:
    return context.get_context().dialect.name == "postgresql"
