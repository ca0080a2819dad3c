"""Statistics of which codes go with which states: to PostgreSQL it looked as if a mail were dead or refused by chance.

Believing that few are both, it fetched all dead mails of a code to show the newest fifty.
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
        # Not of an empty table: PostgreSQL would plan for few rows until it looks again, and each of a new one's first
        # thousands of mails would read all of it.
        op.execute("DO $$ BEGIN IF EXISTS (SELECT FROM outgoing_emails) THEN ANALYZE outgoing_emails; END IF; END $$")


def downgrade() -> None:
    if context.get_context().dialect.name == "postgresql":
        op.execute("DROP STATISTICS st_outgoing_emails_outcome")
