"""Who somebody is, by the name and the password that were typed."""

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
    """Return whose username or address and password these are: a verified user before a pending one, none locked.

    `held`: whom this browser signed up. Always two hashes, each at the cost that is set now, so that time tells
    nothing. Ends the transaction it reads in.
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
    """Return whether it is the user's password; for nobody's it takes as long to say no.

    The caller has no transaction open.
    """
    try:
        return passwords.verify(user and user.password_hash, password)
    except hash_cost.HashUnreadable:
        if user is not None:
            _tell_unreadable(user)
        return False


def find_account(identifier: str) -> User | None:
    """Return the account that is meant: by address before by name, as it is spelled, the newest."""
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
    """Return the signup that is meant: this browser's own, else by its username the oldest; never by its address.

    Signups are many to an address and to a username, and only two hashes are checked. So whichever is chosen here
    must not change when somebody else signs up: of an address that would tell who has it, and shut out who signed up
    before. A browser's own is its own whoever else comes, and of one username the oldest stays it for all that come
    later. Users from before verification are found by their address too: there are no more of them.
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
            # Not of others: who comes later may be called as it is spelled.
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
    # Postgres takes no NUL, and nobody's name has one.
    return "" if "\0" in identifier else identifier.strip()


def _rehash(user: User, password: str) -> None:
    """Give a password that is known for this moment the strength that passwords have by now, and commit."""
    former = user.password_hash
    if passwords.is_outdated(former):
        renewed = passwords.hash(password)
        # Unless it was changed meanwhile.
        db.session.execute(
            update(User).where(User.id == user.id, User.password_hash == former).values(password_hash=renewed)
        )
        db.session.commit()


def _tell_unreadable(user: User) -> None:
    """Tell the operator, once a process: its owner gets in by a link for a forgotten password."""
    told: set[int] = current_app.extensions.setdefault("unreadable_hashes", set())
    if user.id not in told:
        told.add(user.id)
        log.warning("password_hash_unreadable", user_id=user.id)
