"""Values for a notice's template, such as the network address and the browser."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("outgoing_emails", sa.Column("facts", sa.JSON()))


def downgrade() -> None:
    op.drop_column("outgoing_emails", "facts")
