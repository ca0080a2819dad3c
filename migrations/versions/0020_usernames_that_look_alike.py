"""Skeletons, which usernames that look alike share, for the usernames that are taken.

On PostgreSQL the index is built without blocking writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

from contextlib import ExitStack

import sqlalchemy as sa
from alembic import context, op

from webapp.accounts.identifiers import usernames

revision = "0020"
down_revision = "0018"

# While a batch is written, other changes to its users wait.
BATCH = 200

# Users whose usernames are taken: no others are looked up, so a pending signup costs no index entry.
HOLDS = sa.text("email_verified_at IS NOT NULL OR purge_at IS NULL")

users = sa.table(
    "users",
    sa.column("id", sa.Integer),
    sa.column("username", sa.String),
    sa.column("username_skeleton", sa.String),
)


def upgrade() -> None:
    if "username_skeleton" not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("users")}:
        op.add_column("users", sa.Column("username_skeleton", sa.String(256), server_default="", nullable=False))
    with ExitStack() as stack:
        if on_postgresql():
            # Commit each batch: a single transaction would lock every row until the end.
            stack.enter_context(context.get_context().autocommit_block())
            # An interrupted build leaves an invalid index.
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_users_username_skeleton")
        fill_in()
        op.create_index(
            "ix_users_username_skeleton",
            "users",
            ["username_skeleton"],
            postgresql_where=HOLDS,
            sqlite_where=HOLDS,
            postgresql_concurrently=on_postgresql(),
        )


def downgrade() -> None:
    op.drop_index("ix_users_username_skeleton", "users")
    op.drop_column("users", "username_skeleton")


def fill_in() -> None:
    connection = op.get_bind()
    # The app's own function, not a copy: what the app looks up must be what it would write.
    page = sa.select(users.c.id, users.c.username).where(users.c.id > sa.bindparam("after")).order_by(users.c.id)
    fill = (
        sa.update(users)
        .where(users.c.id == sa.bindparam("row_id"), users.c.username_skeleton == "")
        .values(username_skeleton=sa.bindparam("skeleton"))
    )
    after = 0
    while rows := connection.execute(page.limit(BATCH), {"after": after}).all():
        connection.execute(fill, [{"row_id": row.id, "skeleton": usernames.skeleton(row.username)} for row in rows])
        after = rows[-1].id


def on_postgresql() -> bool:
    return context.get_context().dialect.name == "postgresql"
