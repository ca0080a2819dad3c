"""An address belongs to whoever proves it: names and addresses are unique only among the verified.

On PostgreSQL the indexes are built without blocking writers. Each step can be run again after an interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"

log = logging.getLogger("alembic.runtime.migration")

VERIFIED = sa.text("email_verified_at IS NOT NULL")

users = sa.table(
    "users",
    sa.column("id", sa.Integer),
    sa.column("username", sa.String),
    sa.column("email", sa.String),
    sa.column("email_verified_at", sa.DateTime),
)


def upgrade() -> None:
    with outside_a_transaction():
        index("uq_users_verified_email_key", ["email_key"], unique=True, where=VERIFIED)
        index("uq_users_verified_username_key", ["username_key"], unique=True, where=VERIFIED)
        index("ix_users_email_key", ["email_key"])
        index("ix_users_username_key", ["username_key"])
    # SQLite copies the table; PostgreSQL only drops the constraints.
    with op.batch_alter_table("users") as table:
        table.drop_constraint("uq_users_email", type_="unique")
        table.drop_constraint("uq_users_username", type_="unique")


def downgrade() -> None:
    drop_second_rows()
    rename_second_names()
    if on_postgresql():
        with outside_a_transaction():
            try:
                index("uq_users_email", ["email"], unique=True)
                index("uq_users_username", ["username"], unique=True)
            except sa.exc.IntegrityError:
                # Somebody signed up in the meantime. Leave neither index behind, so that it can be run again.
                op.execute("DROP INDEX CONCURRENTLY IF EXISTS uq_users_email")
                op.execute("DROP INDEX CONCURRENTLY IF EXISTS uq_users_username")
                raise
        op.execute("ALTER TABLE users ADD CONSTRAINT uq_users_email UNIQUE USING INDEX uq_users_email")
        op.execute("ALTER TABLE users ADD CONSTRAINT uq_users_username UNIQUE USING INDEX uq_users_username")
    else:
        with op.batch_alter_table("users") as table:
            table.create_unique_constraint("uq_users_email", ["email"])
            table.create_unique_constraint("uq_users_username", ["username"])
    for name in (
        "ix_users_username_key",
        "ix_users_email_key",
        "uq_users_verified_username_key",
        "uq_users_verified_email_key",
    ):
        op.drop_index(name, "users")


def drop_second_rows() -> None:
    """Keep one row for each address, the verified or else the oldest, and log the deleted ones."""
    ranked = rank_by(users.c.email)
    query = sa.delete(users).where(users.c.id.in_(sa.select(ranked.c.id).where(ranked.c.place > 1)))
    dropped = op.get_bind().execute(query.returning(users.c.id)).scalars().all()
    if dropped:
        log.warning("dropped %s signups whose address has another row: users %s", len(dropped), sorted(dropped))


def rename_second_names() -> None:
    """Rename users who share a username with an older or verified row, and log it."""
    connection = op.get_bind()
    ranked = rank_by(users.c.username)
    query = sa.select(users.c.id, users.c.username).where(
        users.c.id.in_(sa.select(ranked.c.id).where(ranked.c.place > 1))
    )
    seconds = connection.execute(query).all()
    for row in seconds:
        name = f"{row.username[:50]}-{row.id}"
        while connection.execute(sa.select(users.c.id).where(users.c.username == name)).first():
            name = f"{name[:60]}_"
        connection.execute(sa.update(users).where(users.c.id == row.id).values(username=name))
    if seconds:
        log.warning("renamed %s users whose username was taken: users %s", len(seconds), [row.id for row in seconds])


def rank_by(column: sa.ColumnClause[str]) -> sa.Subquery:
    """Number the rows that share this column's value: verified first, then oldest first."""
    order = [users.c.email_verified_at.is_(None), users.c.id]
    place = sa.func.row_number().over(partition_by=column, order_by=order).label("place")
    return sa.select(users.c.id, place).subquery()


def index(name: str, columns: list[str], *, unique: bool = False, where: sa.TextClause | None = None) -> None:
    options: dict[str, Any] = {"unique": unique, "postgresql_where": where, "sqlite_where": where}
    if on_postgresql():
        # An interrupted build leaves an invalid index.
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        options["postgresql_concurrently"] = True
    op.create_index(name, "users", columns, **options)


@contextmanager
def outside_a_transaction() -> Iterator[None]:
    if on_postgresql():
        with context.get_context().autocommit_block():
            yield
    else:
        yield


def on_postgresql() -> bool:
    return context.get_context().dialect.name == "postgresql"
