"""Verification: an address belongs to whoever proves it, not to whoever typed it first.

The users that exist stay, unverified, with their usernames, and are never purged.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

import idna
import sqlalchemy as sa
from alembic import context, op

revision = "0002"
down_revision = "0001"

BATCH = 1000

users = sa.table(
    "users",
    sa.column("id", sa.Integer),
    sa.column("username", sa.String),
    sa.column("username_key", sa.String),
    sa.column("email", sa.String),
    sa.column("email_key", sa.String),
    sa.column("email_verified_at", sa.DateTime),
)
VERIFIED = sa.text("email_verified_at IS NOT NULL")


def upgrade() -> None:
    # A constant default is no rewrite of the table; what has none stays empty until it is filled in.
    op.add_column("users", sa.Column("username_key", sa.String(256)))
    op.add_column("users", sa.Column("email_key", sa.String(254)))
    op.add_column("users", sa.Column("email_verified_at", sa.DateTime(timezone=True)))
    op.add_column("users", sa.Column("role", sa.String(20), server_default="user", nullable=False))
    op.add_column("users", sa.Column("purge_at", sa.DateTime(timezone=True)))
    op.add_column("users", sa.Column("locale", sa.String(20), server_default="en", nullable=False))
    _fill_in_keys()
    _require_keys()
    _index("uq_users_verified_email_key", ["email_key"], unique=True)
    _index("uq_users_verified_username_key", ["username_key"], unique=True)
    _index("ix_users_email_key", ["email_key"])
    _index("ix_users_username_key", ["username_key"])
    op.create_table(
        "verify_emails",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("email_key", sa.String(254), nullable=False),
        sa.Column("purpose", sa.String(10), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.Column("voided_at", sa.DateTime(timezone=True)),
        sa.Column("void_reason", sa.String(50)),
        sa.PrimaryKeyConstraint("id", name="pk_verify_emails"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_verify_emails_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_verify_emails_user_id", "verify_emails", ["user_id"])
    op.create_index("ix_verify_emails_email_key", "verify_emails", ["email_key"])


def downgrade() -> None:
    op.drop_table("verify_emails")
    _drop_second_rows()
    _rename_second_names()
    for name in (
        "ix_users_username_key",
        "ix_users_email_key",
        "uq_users_verified_username_key",
        "uq_users_verified_email_key",
    ):
        op.drop_index(name, "users")
    with op.batch_alter_table("users") as table:
        for column in ("locale", "purge_at", "role", "email_verified_at", "email_key", "username_key"):
            table.drop_column(column)
        table.create_unique_constraint("uq_users_email", ["email"])
        table.create_unique_constraint("uq_users_username", ["username"])


def _fill_in_keys() -> None:
    connection = op.get_bind()
    for rows in _batches(sa.select(users.c.id, users.c.username, users.c.email)):
        connection.execute(
            sa.update(users)
            .where(users.c.id == sa.bindparam("row_id"))
            .values(username_key=sa.bindparam("name"), email_key=sa.bindparam("address")),
            [{"row_id": row.id, "name": _username_key(row.username), "address": _email_key(row.email)} for row in rows],
        )


def _batches(query: sa.Select[Any]) -> Iterator[list[sa.Row[Any]]]:
    connection, last = op.get_bind(), 0
    while rows := connection.execute(query.where(users.c.id > last).order_by(users.c.id).limit(BATCH)).all():
        yield list(rows)
        last = rows[-1].id


# Copies, as they were when this migration was written: a migration must not change with the app.


def _email_key(address: str) -> str:
    local, _at, domain = address.strip().rpartition("@")
    try:
        domain = idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        domain = domain.lower()
    return f"{local.lower()}@{domain}"


def _username_key(username: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", username).casefold())


def _require_keys() -> None:
    if context.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("users") as table:
            table.alter_column("username_key", existing_type=sa.String(256), nullable=False)
            table.alter_column("email_key", existing_type=sa.String(254), nullable=False)
            table.drop_constraint("uq_users_email", type_="unique")
            table.drop_constraint("uq_users_username", type_="unique")
        return
    op.alter_column("users", "username_key", nullable=False)
    op.alter_column("users", "email_key", nullable=False)
    op.drop_constraint("uq_users_email", "users", type_="unique")
    op.drop_constraint("uq_users_username", "users", type_="unique")


def _index(name: str, columns: list[str], *, unique: bool = False) -> None:
    where = VERIFIED if unique else None
    op.create_index(name, "users", columns, unique=unique, postgresql_where=where, sqlite_where=where)


def _drop_second_rows() -> None:
    """Keep one row for each address, the verified or else the oldest, and say what goes."""
    seconds = sa.select(*_ranked_by(users.c.email)).subquery()
    query = sa.delete(users).where(users.c.id.in_(sa.select(seconds.c.id).where(seconds.c.place > 1)))
    dropped = op.get_bind().execute(query.returning(users.c.id)).scalars().all()
    if dropped:
        _say("dropped %s signups whose address has another row: users %s", len(dropped), sorted(dropped))


def _rename_second_names() -> None:
    """Give whoever shares a username with an older or verified row another one, and say so."""
    connection = op.get_bind()
    ranked = sa.select(*_ranked_by(users.c.username)).subquery()
    query = sa.select(users.c.id, users.c.username).where(
        users.c.id.in_(sa.select(ranked.c.id).where(ranked.c.place > 1))
    )
    seconds = connection.execute(query).all()
    for row in seconds:
        name = f"{row.username[:50]}-{row.id}"
        connection.execute(sa.update(users).where(users.c.id == row.id).values(username=name))
    if seconds:
        _say("renamed %s users whose username was taken: users %s", len(seconds), [row.id for row in seconds])


def _ranked_by(column: sa.ColumnClause[str]) -> list[sa.ColumnElement[Any]]:
    order = [users.c.email_verified_at.is_(None), users.c.id]
    return [users.c.id, sa.func.row_number().over(partition_by=column, order_by=order).label("place")]


def _say(text: str, *values: object) -> None:
    context.config.print_stdout(text, *values)
