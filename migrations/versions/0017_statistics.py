"""Statistics on which codes go with which states: PostgreSQL assumed that being dead and being refused are independent.

Expecting few emails to be both, it fetched all dead emails of a code to show the newest fifty.
"""

from __future__ import annotations

from alembic import context, op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    if context.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE STATISTICS st_outgoing_emails_outcome (mcv)"
            " ON status, last_error_class, last_smtp_code FROM outgoing_emails"
        )
        # Not for an empty table: PostgreSQL would plan for few rows until its next ANALYZE, and each of the first
        # thousands of emails would scan the whole table.
        op.execute("DO $$ BEGIN IF EXISTS (SELECT FROM outgoing_emails) THEN ANALYZE outgoing_emails; END IF; END $$")


def downgrade() -> None:
    if context.get_context().dialect.name == "postgresql":
        op.execute("DROP STATISTICS st_outgoing_emails_outcome")
