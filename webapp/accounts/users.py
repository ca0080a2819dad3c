"""Users, and who holds a username or an address."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask_login import UserMixin
from sqlalchemy import (
    Column,
    ColumnElement,
    Index,
    Select,
    String,
    and_,
    case,
    func,
    or_,
    select,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import InstrumentedAttribute, Mapped, MappedColumn, mapped_column

from own.fields import Fields
from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import EMAIL_MAX, address_key
from webapp.db import locks
from webapp.db.base import NUMBERED_ONCE, Model, db, partial_index, table

FULL_NAME_MAX = 100

# Why a link was withdrawn.
LOCKED = "the account is locked"

# What a user may do under /ops: nothing, look, or act.
ROLES = ("user", "viewer", "admin")


class User(UserMixin, Fields, Model):
    """A person who signed up; an account once the address is proved."""

    __tablename__ = "users"
    # Unique only among the verified: a pending row reserves nothing, so nobody can squat an address.
    __table_args__ = (
        partial_index("uq_users_verified_email_key", "email_key", where="email_verified_at IS NOT NULL", unique=True),
        partial_index(
            "uq_users_verified_username_key", "username_key", where="email_verified_at IS NOT NULL", unique=True
        ),
        Index("ix_users_email_key", "email_key"),
        # In byte order, in which all names with the same beginning are adjacent.
        Index("ix_users_username_key", "username_key", postgresql_ops={"username_key": "varchar_pattern_ops"}),
        partial_index(
            "ix_users_username_skeleton", "username_skeleton", where="email_verified_at IS NOT NULL OR purge_at IS NULL"
        ),
        partial_index("ix_users_purge_at", "purge_at", where="purge_at IS NOT NULL"),
        NUMBERED_ONCE,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(usernames.LONGEST))
    username_key: Mapped[str] = mapped_column(String(usernames.KEY_MAX), server_default="")
    username_skeleton: Mapped[str] = mapped_column(String(usernames.KEY_MAX), server_default="")
    full_name: Mapped[str] = mapped_column(String(FULL_NAME_MAX))
    email: Mapped[str] = mapped_column(String(EMAIL_MAX))
    email_key: Mapped[str] = mapped_column(String(EMAIL_MAX), server_default="")
    password_hash: Mapped[str] = mapped_column(String(255))
    email_verified_at: Mapped[datetime | None]
    role: Mapped[str] = mapped_column(String(20), server_default="user")
    purge_at: Mapped[datetime | None]
    # Set by an operator: nobody can sign in, and only links that put a former address back still work.
    locked_at: Mapped[datetime | None]
    # Since then, signing in also takes a second factor.
    second_factor_at: Mapped[datetime | None]
    locale: Mapped[str] = mapped_column(String(20), server_default="en")
    created_at: Mapped[datetime] = mapped_column(server_default=func.current_timestamp())

    # Not columns: the token of this browser's session, while it is signed in.
    session_token = ""  # nosec B105
    # When the session was last used, as far as recorded, and when its password was last given.
    session_seen_at = session_reauthenticated_at = datetime.min.replace(tzinfo=UTC)

    @property
    def is_operator(self) -> bool:
        """Whether this user may look at the pages under /ops."""
        return self.is_email_verified and self.role in {"viewer", "admin"}

    @property
    def is_admin(self) -> bool:
        return self.is_email_verified and self.role == "admin"

    @property
    def has_second_factor(self) -> bool:
        return self.second_factor_at is not None

    def get_id(self) -> str:
        """Return what Flask-Login keeps in the cookie."""
        return self.session_token

    @property
    def key(self) -> str:
        """Identifies the user by id and signup time: a restored database may give the id out again, but later."""
        return f"{self.id}:{self.created_at.isoformat()}"

    def own_fields(self) -> list[tuple[Any, str]]:
        """Return the label and the value of each field in own/fields.py."""
        return [(column.info["label"], getattr(self, column.name)) for column in OWN_FIELDS]

    @hybrid_property
    def is_email_verified(self) -> bool:
        return self.email_verified_at is not None

    @is_email_verified.inplace.expression
    @classmethod
    def _is_email_verified(cls) -> ColumnElement[bool]:
        return cls.email_verified_at.is_not(None)


# For finding people by the beginning of their name.
Index(
    "ix_users_full_name",
    func.lower(User.full_name).label("lowered"),
    postgresql_ops={"lowered": "text_pattern_ops"},
    postgresql_where=User.full_name != "",
    sqlite_where=User.full_name != "",
)


def _own_fields() -> tuple[Column[Any], ...]:
    """Return the columns that own/fields.py adds. Raises TypeError."""
    fields = {name: value for name, value in vars(Fields).items() if isinstance(value, MappedColumn)}
    for name, field in fields.items():
        if not _is_complete(field.column):
            raise TypeError(
                f'own/fields.py: {name} must be as mapped_column(String(100), server_default="", info={{"label": …}})'
            )
        if _is_ours(name):
            raise TypeError(f"own/fields.py: {name} must be a name that users do not have yet")
    return tuple(table(User).columns[name] for name in fields)


def _is_complete(column: Column[Any]) -> bool:
    sized = isinstance(column.type, String) and column.type.length
    return bool(sized and column.server_default is not None and "label" in column.info)


def _is_ours(name: str) -> bool:
    """Return whether users already have this attribute without own/fields.py."""
    if name in User.__annotations__ or any(hasattr(base, name) for base in (UserMixin, Model)):
        return True
    return not isinstance(vars(User).get(name), InstrumentedAttribute)


OWN_FIELDS = _own_fields()


def own_values(values: Mapping[str, str]) -> dict[str, str]:
    """Return a value for each column of own/fields.py: "" for those left out."""
    return {column.name: values.get(column.name, "") for column in OWN_FIELDS}


def set_locale(user: User, locale: str) -> None:
    """Use this language for the user's emails from now on, and commit."""
    user.locale = locale
    db.session.commit()


class UserGone(Exception):
    """The account was deleted in the meantime."""


class UsernameTaken(Exception):
    """Somebody else has this username."""


def find_verified(*, email_key: str) -> User | None:
    """Return the account that has proved this address."""
    return db.session.scalar(select(User).where(User.email_verified_at.is_not(None), User.email_key == email_key))


def find_by_address(email_key: str) -> User | None:
    """Return the account that proved this address, else a user from before verification, else the newest signup."""
    return db.session.scalar(
        select(User)
        .where(User.email_key == email_key)
        .order_by(
            case((User.email_verified_at.is_not(None), 0), else_=1),
            case((User.purge_at.is_(None), 0), else_=1),
            User.id.desc(),
        )
        .limit(1)
    )


def is_username_taken(username: str, *, asked_by: User | None = None) -> bool:
    """Return whether somebody else has this username, or one that looks the same."""
    key = usernames.key(username)
    holders = _holders(key, usernames.skeleton(username))
    if asked_by is not None:
        if is_from_before(asked_by) and asked_by.username_key == key:
            # Such a user keeps its name, whatever looks like it by now; of two with the same, the first to verify wins.
            holders = [select(User.id).where(User.username_key == key, User.email_verified_at.is_not(None))]
        holders = [some.where(User.id != asked_by.id) for some in holders]
    return bool(db.session.scalar(select(or_(*(some.exists() for some in holders)))))


def state(user: User) -> str:
    """Return "locked", "verified", "legacy" (from before verification existed) or "pending"."""
    if user.locked_at is not None:
        return "locked"
    if user.is_email_verified:
        return "verified"
    return "legacy" if is_from_before(user) else "pending"


def is_from_before(user: User) -> bool:
    """Return whether the user signed up before verification existed, and has not verified since."""
    return user.email_verified_at is None and user.purge_at is None


# Users whose usernames are taken. Those from before verification existed keep theirs too, since nothing purges them.
HOLDS = or_(User.email_verified_at.is_not(None), User.purge_at.is_(None))


def _holders(key: str, skeleton: str) -> list[Select[int]]:
    """Return queries for users with this username, and with one that looks the same: each can use its own index."""
    return [
        select(User.id).where(HOLDS, same) for same in (User.username_key == key, User.username_skeleton == skeleton)
    ]


def fill_in_keys(limit: int = 1000) -> int:
    """Fill in the keys that old code, still running after the migration, did not write; return for how many users."""
    is_unfilled = or_(User.email_key == "", and_(HOLDS, User.username_skeleton == ""))
    # Skip locked users: the process that holds one may be frozen. They get their turn later.
    unfilled = select(User).where(is_unfilled).limit(limit).with_for_update(skip_locked=True)
    found = db.session.scalars(unfilled).all()
    for user in found:
        user.email_key = address_key(user.email.strip())[:EMAIL_MAX]
        name(user, user.username)
    return len(found)


def name(user: User, username: str) -> None:
    """Set the username and its keys."""
    user.username = username
    user.username_key, user.username_skeleton = usernames.key(username), usernames.skeleton(username)


def lock_row(user: User) -> None:
    """Read the user again, and lock it until the commit. Raises UserGone."""
    row = select(User).where(User.id == user.id).with_for_update()
    if db.session.scalar(row, execution_options={"populate_existing": True}) is None:
        db.session.rollback()
        raise UserGone


def stays(user: User) -> bool:
    """Return whether the user still exists and its account is not locked, which stays so until the commit."""
    row = select(User.id).where(User.id == user.id, User.locked_at.is_(None))
    return db.session.scalar(row.with_for_update(read=True, key_share=True)) is not None


def lock(email_key: str, username: str) -> None:
    """Let nobody else confirm this address, this username or one that looks the same until the commit.

    Always in this order: otherwise signups that confirm at once could deadlock.
    """
    locks.lock(f"email:{email_key}")
    locks.lock(f"username:{usernames.key(username)}", f"looks:{usernames.skeleton(username)}")
