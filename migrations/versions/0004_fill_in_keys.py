"""Fill in existing users' keys, which all spellings of a username or an address share."""

from __future__ import annotations

import unicodedata

import idna
import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"

BATCH = 1000

users = sa.table(
    "users",
    sa.column("id", sa.Integer),
    sa.column("username", sa.String),
    sa.column("username_key", sa.String),
    sa.column("email", sa.String),
    sa.column("email_key", sa.String),
)


def upgrade() -> None:
    if context.get_context().dialect.name == "postgresql":
        # Commit each batch: a single transaction would lock every row until the end.
        with context.get_context().autocommit_block():
            fill_in()
    else:
        fill_in()


def downgrade() -> None:
    """Keep the keys: 0002 drops their columns."""


def fill_in() -> None:
    connection = op.get_bind()
    unfilled = sa.select(users.c.id, users.c.username, users.c.email).where(users.c.email_key == "").limit(BATCH)
    fill = (
        sa.update(users)
        .where(users.c.id == sa.bindparam("row_id"))
        .values(username_key=sa.bindparam("name"), email_key=sa.bindparam("address"))
    )
    while rows := connection.execute(unfilled).all():
        keys = [{"row_id": row.id, "name": username_key(row.username), "address": email_key(row.email)} for row in rows]
        connection.execute(fill, keys)


# Copies from when this migration was written: a migration must not change with the app.


def email_key(address: str) -> str:
    local, _at, domain = address.strip().rpartition("@")
    try:
        domain = idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        domain = domain.lower()
    return f"{local.lower()}@{domain}"[:254]


def username_key(username: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", username.strip()).casefold())[:256]
