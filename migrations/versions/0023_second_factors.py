"""Second factors of accounts, their recovery codes, and wrong tries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    op.add_column("users", sa.Column("second_factor_at", sa.DateTime(timezone=True)))
    op.create_table(
        "second_factors",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("masked", sa.LargeBinary(20), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("code_time", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_second_factors"),
        sa.UniqueConstraint("user_id", name="uq_second_factors_user_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_second_factors_user_id", ondelete="CASCADE"),
    )
    op.create_table(
        "recovery_codes",
        sa.Column("code_hash", sa.String(64), nullable=False),
        sa.Column("factor_id", sa.Uuid(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("code_hash", name="pk_recovery_codes"),
        belongs_to_a_factor("recovery_codes"),
    )
    op.create_index("ix_recovery_codes_factor_id", "recovery_codes", ["factor_id"])
    op.create_table(
        "second_factor_tries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("factor_id", sa.Uuid(), nullable=False),
        sa.Column("known_by", sa.String(100)),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_second_factor_tries"),
        belongs_to_a_factor("second_factor_tries"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_second_factor_tries_factor_id", "second_factor_tries", ["factor_id", "tried_at"])


def downgrade() -> None:
    for table in ("second_factor_tries", "recovery_codes", "second_factors"):
        op.drop_table(table)
    op.drop_column("users", "second_factor_at")


def belongs_to_a_factor(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["factor_id"], ["second_factors.id"], name=f"fk_{table}_factor_id", ondelete="CASCADE"
    )
