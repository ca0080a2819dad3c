"""The browser and network address of a session, and the new address that a link proves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("user_sessions", sa.Column("browser", sa.String(30)))
    op.add_column("user_sessions", sa.Column("system", sa.String(30)))
    op.add_column("user_sessions", sa.Column("address", sa.String(45)))
    op.add_column("verify_emails", sa.Column("email", sa.String(254)))
    op.add_column("verify_emails", sa.Column("asked_by", sa.String(64)))


def downgrade() -> None:
    # Old code treats every link as a signup's.
    op.execute(
        "UPDATE outgoing_emails SET status = 'canceled', finished_at = CURRENT_TIMESTAMP, last_error = 'downgraded'"
        " WHERE status = 'queued'"
        " AND verify_email_id IN (SELECT id FROM verify_emails WHERE purpose IN ('change', 'revoke'))"
    )
    op.execute("DELETE FROM verify_emails WHERE purpose IN ('change', 'revoke')")
    op.drop_column("verify_emails", "asked_by")
    op.drop_column("verify_emails", "email")
    op.drop_column("user_sessions", "address")
    op.drop_column("user_sessions", "system")
    op.drop_column("user_sessions", "browser")
