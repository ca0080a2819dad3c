"""Roles, which say who may see and do what under /ops: creating, promoting and demoting accounts."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError

from webapp import audit, signals
from webapp.accounts import users, verification
from webapp.accounts.identifiers import email_addresses, usernames
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now


class AccountExists(Exception):
    """This address already has an account."""


def create(address: Address, *, username: str, password_hash: str, role: str) -> User:
    """Create an account without a verification email, and commit: the operator vouches for the address.

    Other links to the address become void, as when somebody proves it. Raises AccountExists, UsernameTaken or
    ReceiverFailed.
    """
    users.lock(address.key, username)
    if users.find_verified(email_key=address.key):
        db.session.rollback()
        raise AccountExists
    if users.is_username_taken(username):
        db.session.rollback()
        raise users.UsernameTaken
    user = User(
        username=username,
        username_key=usernames.key(username),
        username_skeleton=usernames.skeleton(username),
        full_name="",
        email=address.mailed,
        email_key=address.key,
        password_hash=password_hash,
        email_verified_at=db_now(),
        role=role,
        created_at=db_now(),
    )
    db.session.add(user)
    verification.void_rivals(address.key)
    try:
        db.session.flush()
    except IntegrityError as error:
        db.session.rollback()
        raise AccountExists from error
    audit.record("user_created", user.id, detail=role)
    signals.send(signals.user_verified, user)
    db.session.commit()
    return user


def give(user: User, role: str) -> None:
    """Change a user's role, from the next request on, and commit."""
    if user.role != role:
        audit.record("role_changed", user.id, detail=f"{user.role} -> {role}")
        user.role = role
    db.session.commit()


def find(identifier: str) -> User | None:
    """Return the verified user with this username or address."""
    return db.session.scalar(
        select(User).where(
            User.email_verified_at.is_not(None),
            or_(
                User.email_key == email_addresses.address_key(identifier.strip()),
                User.username_key == usernames.key(identifier),
            ),
        )
    )


def holders(role: str | None = None) -> Sequence[User]:
    """Return the users with this role, or with any role but "user"."""
    wanted = User.role == role if role else User.role != "user"
    return db.session.scalars(select(User).where(wanted).order_by(User.id)).all()
