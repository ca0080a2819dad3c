"""Where people are sent after a link did its work."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("verify_emails", sa.Column("leads_to", sa.String(1000)))


def downgrade() -> None:
    op.drop_column("verify_emails", "leads_to")
