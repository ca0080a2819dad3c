"""Signing up: the user, the verification and its queued email, in one commit."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import MappingProxyType

from flask import current_app
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from webapp import audit
from webapp.accounts import links, tokens, users
from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db, execute_alone, table
from webapp.db.clock import db_now
from webapp.outbox import kinds, outgoing_email, posting
from webapp.outbox.outgoing_email import OutgoingEmail

# How often a signup may change its address, and the void_reason of the verifications that this withdraws.
CHANGES = 3
CHANGED = "address changed"


class TooManyChanges(Exception):
    """The signup's address was already changed CHANGES times."""


# Everything that a signup writes, in one round trip on PostgreSQL; nothing if the username is taken.
SIGN_UP = text(
    """
    WITH person AS (
        INSERT INTO users (username, username_key, username_skeleton, full_name, email, email_key, password_hash,
            locale, purge_at, created_at{own_columns})
        SELECT :username, :username_key, :username_skeleton, :full_name, :email, :email_key, :password_hash,
            :locale, statement_timestamp() + make_interval(secs => :purge_after), statement_timestamp(){own_values}
        WHERE NOT EXISTS (
            SELECT FROM users
            WHERE username_key = CAST(:username_key AS varchar)
                AND (email_verified_at IS NOT NULL OR purge_at IS NULL)
        ) AND NOT EXISTS (
            SELECT FROM users
            WHERE username_skeleton = CAST(:username_skeleton AS varchar)
                AND (email_verified_at IS NOT NULL OR purge_at IS NULL)
        )
        RETURNING id, email, email_key, locale, purge_at, created_at
    ), link AS (
        INSERT INTO verify_emails (id, user_id, email_key, purpose, key_id, leads_to, created_at)
        SELECT :verify_email_id, id, email_key, 'signup', :key_id, :leads_to, created_at FROM person
    ), promise AS (
        INSERT INTO outgoing_emails (id, message_id, dedupe_key, user_id, verify_email_id, locale, to_address, budget,
            priority, max_attempts, request_id, delay, next_attempt_at, expires_at, created_at)
        SELECT :email_id, :message_id, :dedupe_key, id, :verify_email_id, locale, email, :budget,
            :priority, :max_attempts, :request_id, :delay, created_at + make_interval(secs => :delay), purge_at,
            created_at
        FROM person
    ), event AS (
        INSERT INTO audit_events (at, action, user_id, address, actor)
        SELECT created_at, 'signed_up', id, :address, :actor FROM person
    )
    SELECT id FROM person
    """.format(  # noqa: S608 - columns of our own code  # nosec B608
        own_columns="".join(f', "{column.name}"' for column in users.OWN_FIELDS),
        # Prefixed: they may share a name with another parameter.
        own_values="".join(f", :own_{column.name}" for column in users.OWN_FIELDS),
    )
)


def sign_up(
    *,
    username: str,
    full_name: str,
    address: Address,
    password_hash: str,
    locale: str,
    verification_id: uuid.UUID | None = None,
    rank: int = 1,
    leads_to: str | None = None,
    own: Mapping[str, str] = MappingProxyType({}),
) -> tuple[uuid.UUID, uuid.UUID | None]:
    """Commit a pending user and its email, together or not at all; return the id for find(), and the email's id.

    A form that is sent twice has the same `verification_id`: the second time nothing is created, and there is no email.
    `rank`: the number of signups from this network within the hour, this one included. `leads_to`: where the person
    wants to go once verified. `own`: values for own/fields.py. Raises UsernameTaken.

    Never looks the address up: the worker decides what a known one means, so that the answer and its timing are the
    same for every address.
    """
    signup_id = verification_id or uuid.uuid4()
    person = {
        "username": username,
        "username_key": usernames.key(username),
        "username_skeleton": usernames.skeleton(username),
        "full_name": full_name,
        "email": address.mailed,
        "email_key": address.key,
        "password_hash": password_hash,
        "locale": locale,
        **users.own_values(own),
    }
    try:
        return signup_id, add(person, signup_id, leads_to, posting.signup_priority(rank))
    except IntegrityError:
        db.session.rollback()
        if db.session.get(VerifyEmail, signup_id) is None:
            raise
        return signup_id, None


def add(person: dict[str, str], signup_id: uuid.UUID, leads_to: str | None, priority: int) -> uuid.UUID:
    """Write a signup, `person` by the columns of users, and commit; return the email's id. Raises UsernameTaken.

    A key of `person` that is not a column, or that SIGN_UP does not write, is an error.
    """
    if db.engine.dialect.name == "sqlite":
        return _add_step_by_step(person, signup_id, leads_to, priority)
    email_id, own = uuid.uuid4(), {column.name for column in users.OWN_FIELDS}
    values = {
        **{f"own_{name}" if name in own else name: value for name, value in person.items()},
        **links.about(signup_id, outgoing_email.SIGNUPS, person["email_key"]),
        **posting.stamp(email_id),
        **audit.who(),
        "purge_after": kinds.PURGE_AFTER,
        "key_id": tokens.newest_key(),
        "leads_to": leads_to,
        "email_id": email_id,
        "priority": priority,
        "delay": delay(),
    }
    if execute_alone(SIGN_UP, values) is None:
        raise users.UsernameTaken
    return email_id


def _add_step_by_step(person: dict[str, str], signup_id: uuid.UUID, leads_to: str | None, priority: int) -> uuid.UUID:
    """Do what SIGN_UP does: SQLite cannot write to two tables in one statement, and has no round trips to save."""
    if users.is_username_taken(person["username"]):
        db.session.rollback()
        raise users.UsernameTaken
    # In values(): as parameters beside the statement, keys that are not columns would be ignored.
    pending = insert(table(User)).values(**person, purge_at=db_now(kinds.PURGE_AFTER), created_at=db_now())
    user_id = db.session.scalar(pending.returning(table(User).c.id))
    link = {
        "id": signup_id,
        "user_id": user_id,
        "email_key": person["email_key"],
        "purpose": "signup",
        "key_id": tokens.newest_key(),
        "leads_to": leads_to,
    }
    db.session.execute(insert(table(VerifyEmail)).values(created_at=db_now()), link)
    email_id = posting.add(
        **links.about(signup_id, outgoing_email.SIGNUPS, person["email_key"]),
        to_address=person["email"],
        user_id=user_id,
        locale=person["locale"],
        priority=priority,
        delay=delay(),
        expires_in=kinds.PURGE_AFTER,
    )
    audit.record("signed_up", user_id)
    db.session.commit()
    return email_id


def find(signup_id: uuid.UUID) -> User | None:
    """Return the user whose signup began with this verification.

    A browser knows its signup by this id, whatever its address is by now. A user's id would not do: a database that
    was restored from a backup may give it out again.
    """
    return db.session.scalar(
        select(User).join(VerifyEmail, VerifyEmail.user_id == User.id).where(VerifyEmail.id == signup_id)
    )


def id_of(user: User, leads_to: str | None = None) -> uuid.UUID:
    """Return the id for find(), and commit; a user from before verification existed gets one now.

    `leads_to`: where the person wants to go once verified; None changes nothing.
    """
    first = db.session.scalar(
        select(VerifyEmail.id)
        .where(VerifyEmail.user_id == user.id, VerifyEmail.purpose == "signup")
        .order_by(VerifyEmail.created_at)
        .limit(1)
    )
    signup_id = first or links.begin(user, "signup").id
    if leads_to is not None:
        db.session.flush()
        db.session.execute(
            update(VerifyEmail)
            .where(VerifyEmail.user_id == user.id, VerifyEmail.purpose == "signup")
            .values(leads_to=leads_to)
        )
    db.session.commit()
    return signup_id


def delay() -> float:
    """Return how many seconds a signup's email waits: time to notice a wrong address."""
    return float(current_app.config["VERIFY_EMAIL_DELAY"])


def resend(user: User) -> uuid.UUID | None:
    """Queue the pending user's link again, without delay, and commit; return None if one is already on its way.

    The link stays the same. A user from before verification existed gets a first one.
    """
    email_id = post_again(user)
    db.session.commit()
    return email_id


def post_again(user: User) -> uuid.UUID | None:
    """Do as resend(), in the caller's transaction."""
    return _post_link(user, links.current_for(user) or links.begin(user, "signup"))


def change_address(user: User, address: Address, rank: int = 1) -> uuid.UUID | None:
    """Give a pending user another address, void the link to the former one, and commit; return the new email's id.

    Raises TooManyChanges or AlreadyVerified.
    """
    db.session.refresh(user, with_for_update=True)
    if user.is_email_verified:
        db.session.rollback()
        raise links.AlreadyVerified
    if address.mailed == user.email:
        # The form was sent twice, or the address was right: the link on its way stays valid.
        return resend(user)
    if links.count_voided(user, CHANGED) >= CHANGES:
        db.session.rollback()
        raise TooManyChanges
    if former := links.current_for(user):
        links.void(former, CHANGED)
    user.email, user.email_key = address.mailed, address.key
    email_id = _post_link(user, links.begin(user, "signup"), rank)
    audit.record("address_changed", user.id)
    db.session.commit()
    return email_id


def _post_link(user: User, proof: VerifyEmail, rank: int = 1) -> uuid.UUID | None:
    # Read before the flush: after it, reading a time that the database set costs a query.
    expires_in = kinds.PURGE_AFTER if user.purge_at is not None else None
    # Never more urgent than the previous email: otherwise resending would be a way to jump the queue.
    former = db.session.scalar(
        select(func.max(OutgoingEmail.priority)).where(
            OutgoingEmail.user_id == user.id, OutgoingEmail.priority <= posting.LAST_SIGNUP_PRIORITY
        )
    )
    return links.post_link(
        proof,
        to_address=user.email,
        priority=max(former or 0, posting.signup_priority(rank)),
        expires_in=expires_in,
    )
