"""People, and the keys that make two spellings one account."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime

from email_validator import EmailNotValidError, validate_email
from flask_login import UserMixin
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Index,
    ScalarSelect,
    Select,
    String,
    Update,
    bindparam,
    case,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from webapp import extensions
from webapp.clock import db_now
from webapp.extensions import NUMBERED_ONCE, Model, db, partial_index, row_of, table

USERNAME_MAX = 64
USERNAME_KEY_MAX = 256
FULL_NAME_MAX = 100
EMAIL_MAX = 254

# What a user may do under /ops: nothing, look, or act.
ROLES = ("user", "viewer", "admin")

# Never-verified users vanish this long after their signup or last mail.
PURGE_AFTER = 7 * 86400.0


class User(UserMixin, Model):
    """A person who signed up; an account only once the address is proved."""

    __tablename__ = "users"
    # Unique only among the verified: a pending row reserves nothing, so nobody can squat an address.
    __table_args__ = (
        partial_index("uq_users_verified_email_key", "email_key", where="email_verified_at IS NOT NULL", unique=True),
        partial_index(
            "uq_users_verified_username_key", "username_key", where="email_verified_at IS NOT NULL", unique=True
        ),
        Index("ix_users_email_key", "email_key"),
        Index("ix_users_username_key", "username_key"),
        partial_index("ix_users_purge_at", "purge_at", where="purge_at IS NOT NULL"),
        NUMBERED_ONCE,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(USERNAME_MAX))
    username_key: Mapped[str] = mapped_column(String(USERNAME_KEY_MAX), server_default="")
    full_name: Mapped[str] = mapped_column(String(FULL_NAME_MAX))
    email: Mapped[str] = mapped_column(String(EMAIL_MAX))
    email_key: Mapped[str] = mapped_column(String(EMAIL_MAX), server_default="")
    password_hash: Mapped[str] = mapped_column(String(255))
    email_verified_at: Mapped[datetime | None]
    role: Mapped[str] = mapped_column(String(20), server_default="user")
    purge_at: Mapped[datetime | None]
    locale: Mapped[str] = mapped_column(String(20), server_default="en")
    created_at: Mapped[datetime] = mapped_column(server_default=func.current_timestamp())

    # Not a column: what this browser's session is known by, while it is signed in.
    session_token = ""  # nosec B105

    @property
    def is_operator(self) -> bool:
        """Whether this user may look at the pages under /ops."""
        return self.is_email_verified and self.role in {"viewer", "admin"}

    @property
    def is_admin(self) -> bool:
        return self.is_email_verified and self.role == "admin"

    def get_id(self) -> str:
        """Return what Flask-Login keeps in the cookie."""
        return self.session_token

    @property
    def key(self) -> str:
        """What this user is counted by: a restored database gives the number out again, but not at the same moment."""
        return f"{self.id}:{self.created_at.isoformat()}"

    @hybrid_property
    def is_email_verified(self) -> bool:
        return self.email_verified_at is not None

    @is_email_verified.inplace.expression
    @classmethod
    def _is_email_verified(cls) -> ColumnElement[bool]:
        return cls.email_verified_at.is_not(None)


def speak(user: User, locale: str) -> None:
    """Write to the user in this language from now on, and commit."""
    user.locale = locale
    db.session.commit()


class UserGone(Exception):
    """The account was deleted meanwhile."""


class UsernameTaken(Exception):
    """Somebody else holds this username."""


class AddressInvalid(ValueError):
    """Not an address that we can mail; its text says why."""


class UsernameInvalid(ValueError):
    """Not a username; `reason` is "length" or "characters"."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Address:
    """`mailed` is what mail is sent to, `key` what makes two spellings one account."""

    mailed: str
    key: str


def parse_address(text: str) -> Address:
    """Raises AddressInvalid."""
    try:
        # Reserved names such as example.test are let through: nobody's mail arrives there, and trials use them.
        valid = validate_email(
            text, allow_smtputf8=False, check_deliverability=False, test_environment=True, strict=True
        )
    except EmailNotValidError as error:
        raise AddressInvalid(str(error)) from error
    # Lower-cased, not case-folded: folding would merge mailboxes that differ.
    return Address(mailed=valid.ascii_email or valid.normalized, key=f"{valid.local_part.lower()}@{valid.ascii_domain}")


def normalize_username(text: str) -> str:
    """Return the username as it is shown, or raise UsernameInvalid."""
    if len(text) > 4 * USERNAME_MAX:
        # Before it is normalized, which takes seconds for a long row of accents.
        raise UsernameInvalid("length")
    name = unicodedata.normalize("NFKC", text.strip())
    if not name or len(name) > USERNAME_MAX:
        raise UsernameInvalid("length")
    # Marks too: Thai and Hindi vowels are marks.
    if not all(char in "._-" or unicodedata.category(char)[0] in "LMN" for char in name):
        raise UsernameInvalid("characters")
    return name


def username_key(username: str) -> str:
    folded = unicodedata.normalize("NFKC", username.strip()).casefold()
    # Some single characters become a dozen; names that old code let in may be of those.
    return unicodedata.normalize("NFKC", folded)[:USERNAME_KEY_MAX]


def find_verified(*, email_key: str) -> User | None:
    """Return the account that has proved this address."""
    return db.session.scalar(select(User).where(User.email_verified_at.is_not(None), User.email_key == email_key))


def find_by_address(email_key: str) -> User | None:
    """Return who has this address: the account that proved it, else from before verification, else the newest."""
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


def is_username_taken(username_key: str, *, asked_by: User | None = None) -> bool:
    """Return whether somebody else holds this username."""
    return db.session.scalar(_holders(username_key, asked_by).limit(1)) is not None


def _holders(username_key: str | BindParameter[str], asked_by: User | None = None) -> Select[int]:
    """Return the choice of who holds this username, but for who asks.

    Verified users do, and so do users from before verification existed, whom nothing
    purges. Between two of those the first to verify wins.
    """
    holds: ColumnElement[bool] = User.email_verified_at.is_not(None)
    if asked_by is None or asked_by.purge_at is not None:
        holds = holds | User.purge_at.is_(None)
    query = select(User.id).where(User.username_key == username_key, holds)
    return query if asked_by is None else query.where(User.id != asked_by.id)


# What adds a pending user, unless somebody holds the username, and returns the id: made once.
PENDING = row_of(
    User,
    "username",
    "username_key",
    "full_name",
    "email",
    "email_key",
    "password_hash",
    "locale",
    purge_at=db_now(PURGE_AFTER),
    created_at=db_now(),
).where(~_holders(bindparam("username_key", type_=String)).exists())
ADDED = insert(table(User)).from_select(PENDING.selected_columns.keys(), PENDING).returning(User.id.label("user_id"))


def address_key(typed: str) -> str:
    """Return an address's key, also of one that we would not accept today."""
    try:
        return parse_address(typed).key
    except AddressInvalid:
        local, _at, domain = typed.rpartition("@")
        return f"{local.lower()}@{domain.lower()}"


def identifier_key(typed: str) -> str:
    """Return what two ways to type the same username or address have in common."""
    return address_key(typed) if "@" in typed else username_key(typed)


def fill_in_keys(limit: int = 1000) -> int:
    """Give users the keys that old code, still running after the migration, did not write; return how many."""
    unfilled = db.session.scalars(select(User).where(User.email_key == "").limit(limit)).all()
    for user in unfilled:
        user.email_key = address_key(user.email.strip())[:EMAIL_MAX]
        user.username_key = username_key(user.username)
    return len(unfilled)


def extended_purge(user_id: ScalarSelect[int]) -> Update:
    """Return what gives a pending user the full time again; users from before verification have no end."""
    purged = table(User)
    return update(purged).where(User.id == user_id, User.purge_at.is_not(None)).values(purge_at=db_now(PURGE_AFTER))


def hold(user: User) -> None:
    """Read the user anew, and let nobody else change it until the commit. Raises UserGone."""
    row = select(User).where(User.id == user.id).with_for_update()
    if db.session.scalar(row, execution_options={"populate_existing": True}) is None:
        db.session.rollback()
        raise UserGone


def lock(email_key: str, username_key: str) -> None:
    """Let nobody else confirm this address or username until the commit.

    Always in this order: without it, rivals who confirm at once deadlock.
    """
    extensions.lock(f"email:{email_key}")
    extensions.lock(f"username:{username_key}")
