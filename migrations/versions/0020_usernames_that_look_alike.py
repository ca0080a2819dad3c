"""What usernames that look alike have in common, for those that somebody holds.

On PostgreSQL the index is built beside the writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

from contextlib import ExitStack

import sqlalchemy as sa
from alembic import context, op

from webapp.accounts.identifiers import usernames

revision = "0020"
down_revision = "0018"

# As long as these are written, who changes one of them waits.
BATCH = 200

# Whose usernames are taken: nobody else's is looked up, so that a pending signup costs no entry.
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
            # Each batch by itself: one transaction would keep every row from its writers until the end.
            stack.enter_context(context.get_context().autocommit_block())
            # An interrupted build leaves an index that is not valid.
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
    # Not a copy of how it is made: what the app looks up must be what it would write.
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
