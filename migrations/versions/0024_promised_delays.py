"""How long an email was promised to wait."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    op.add_column("outgoing_emails", sa.Column("delay", sa.Double()))


def downgrade() -> None:
    op.drop_column("outgoing_emails", "delay")
