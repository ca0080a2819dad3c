"""What a notice tells besides its template: from where, and with what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("outgoing_emails", sa.Column("facts", sa.JSON()))


def downgrade() -> None:
    op.drop_column("outgoing_emails", "facts")
