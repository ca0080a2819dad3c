"""Finding out who somebody is by the name and password that they typed."""

from __future__ import annotations

import structlog
from flask import current_app
from sqlalchemy import ColumnElement, and_, case, or_, select, update

from webapp.accounts import hash_cost, passwords
from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import address_key, identifier_key
from webapp.accounts.users import User
from webapp.db.base import db

log = structlog.get_logger(__name__)


def authenticate(identifier: str, password: str, held: User | None = None) -> User | None:
    """Return the user with this username or address and this password: verified before pending, never a locked one.

    `held`: the user that this browser signed up. Always checks two hashes, each at the current cost, so that timing
    reveals nothing. Ends the transaction.
    """
    typed = _readable(identifier)
    candidates = (find_account(typed), _find_pending(typed, held))
    # No transaction stays open while a password is hashed. (A rollback would expire what was read.)
    db.session.commit()
    are_right = [is_password(user, password) for user in candidates]
    for user, is_right in zip(candidates, are_right, strict=True):
        if user is not None and is_right and user.locked_at is None:
            _rehash(user, password)
            return user
    return None


def is_password(user: User | None, password: str) -> bool:
    """Return whether it is the user's password; without a user, it takes as long to say no.

    The caller must have no open transaction.
    """
    try:
        return passwords.verify(user and user.password_hash, password)
    except hash_cost.HashUnreadable:
        if user is not None:
            _tell_unreadable(user)
        return False


def find_account(identifier: str) -> User | None:
    """Return the account that is meant: by address before username, then by exact spelling, then the newest."""
    typed = _readable(identifier)
    address = address_key(typed)
    return db.session.scalar(
        select(User)
        .where(
            User.email_verified_at.is_not(None),
            or_(User.email_key == address, User.username_key == usernames.key(typed)),
        )
        .order_by((User.email_key != address), _is_spelled_otherwise(typed), User.id.desc())
        .limit(1)
    )


def _find_pending(typed: str, held: User | None) -> User | None:
    """Return the signup that is meant: this browser's own, else the oldest with this username; never by address.

    An address or a username may have many signups, and only two hashes are checked. So the choice must not change
    when somebody else signs up: by address, that would reveal who has it and shut out whoever signed up earlier. This
    browser's own signup stays its own, and the oldest with a username stays the oldest. Users from before verification
    existed are found by address too: their number does not grow.
    """
    if held is not None and not held.is_email_verified and _is_called(held, typed):
        return held
    address = address_key(typed)
    is_former = User.purge_at.is_(None)
    return db.session.scalar(
        select(User)
        .where(
            User.email_verified_at.is_(None),
            or_(User.username_key == usernames.key(typed), and_(is_former, User.email_key == address)),
        )
        .order_by(
            case((is_former, 0), else_=1),
            (User.email_key != address),
            # Not among signups: a later one could match the spelling better.
            case((is_former, _is_spelled_otherwise(typed)), else_=1),
            User.id,
        )
        .limit(1)
    )


def _is_called(user: User, typed: str) -> bool:
    return identifier_key(typed) in {user.email_key, user.username_key}


def _is_spelled_otherwise(typed: str) -> ColumnElement[int]:
    return case((or_(User.email == typed, User.username == typed), 0), else_=1)


def _readable(identifier: str) -> str:
    # PostgreSQL does not accept NUL, and no name contains one.
    return "" if "\0" in identifier else identifier.strip()


def _rehash(user: User, password: str) -> None:
    """Hash the password again if its hash is outdated, and commit: only now is the password known."""
    former = user.password_hash
    if passwords.is_outdated(former):
        renewed = passwords.hash(password)
        # Unless it was changed in the meantime.
        db.session.execute(
            update(User).where(User.id == user.id, User.password_hash == former).values(password_hash=renewed)
        )
        db.session.commit()


def _tell_unreadable(user: User) -> None:
    """Warn the operator, once per process. The owner can still get in by resetting the password."""
    told: set[int] = current_app.extensions.setdefault("unreadable_hashes", set())
    if user.id not in told:
        told.add(user.id)
        log.warning("password_hash_unreadable", user_id=user.id)
