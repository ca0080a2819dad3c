"""Signing up: the user, the verification and the promise of its mail, in one commit."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import current_app
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError

from webapp import audit
from webapp.accounts import links, users
from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.statements import execute_at_once
from webapp.outbox import kinds, posting
from webapp.outbox.outgoing_email import OutgoingEmail

# How often one signup may change its address, and how the verifications that this withdrew are marked.
CHANGES = 3
CHANGED = "address changed"


class TooManyChanges(Exception):
    """The address was changed often enough."""


# Made once, as what every signup needs.
SIGNED_UP = (users.ADDED, *links.BEGUN, audit.ENTRY)


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
    """Commit a pending user and its mail, together or not at all; return what find() takes, and the mail's id.

    A form that is sent twice names the same `verification_id`: the second time makes nothing, and no mail.
    `rank`: how many signups its network had within the hour, with this one. `leads_to`: where the person wants to go
    once verified. `own`: fields of one's own. Raises UsernameTaken.

    Never looks the address up: what a known one means is the worker's to decide,
    so that this answers the same, as fast, for everybody's address.
    """
    signup_id = verification_id or uuid.uuid4()
    parameters: dict[str, Any] = {
        **links.first(
            signup_id,
            address,
            locale,
            priority=posting.signup_priority(rank),
            delay=delay(),
            leads_to=leads_to,
        ),
        **audit.entry("signed_up"),
        "username": username,
        "username_key": usernames.key(username),
        "username_skeleton": usernames.skeleton(username),
        "full_name": full_name,
        "email": address.mailed,
        "password_hash": password_hash,
        **users.own_values(own),
    }
    try:
        added = execute_at_once(SIGNED_UP, parameters)
    except IntegrityError:
        db.session.rollback()
        if db.session.get(VerifyEmail, signup_id) is None:
            raise
        return signup_id, None
    if added is None:
        raise users.UsernameTaken
    return signup_id, parameters["mail"]


def find(signup_id: uuid.UUID) -> User | None:
    """Return whose signup began with this verification.

    A browser knows its signup by that, for whatever address it has by now. A user's number may be given out
    again, by a database that was restored from a backup.
    """
    return db.session.scalar(
        select(User).join(VerifyEmail, VerifyEmail.user_id == User.id).where(VerifyEmail.id == signup_id)
    )


def id_of(user: User, leads_to: str | None = None) -> uuid.UUID:
    """Return what find() takes, and commit: who signed up before verification existed gets it now.

    `leads_to`: where the person wants to go once verified, if anywhere else than before.
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
    """Return how many seconds a signup's mail waits: time to notice a wrong address."""
    return float(current_app.config["VERIFY_EMAIL_DELAY"])


def resend(user: User) -> uuid.UUID | None:
    """Promise the pending user's link again, at once; nothing when one is on its way already.

    The link stays the same. Who signed up before verification existed gets a first one.
    """
    email_id = post_again(user)
    db.session.commit()
    return email_id


def post_again(user: User) -> uuid.UUID | None:
    """Do as resend(), as part of the caller's transaction."""
    return _post_link(user, links.current_for(user) or links.begin(user, "signup"))


def change_address(user: User, address: Address, rank: int = 1) -> uuid.UUID | None:
    """Give a pending user another address: what was sent to the former one is void at once. Commits.

    Raises TooManyChanges, or AlreadyVerified.
    """
    db.session.refresh(user, with_for_update=True)
    if user.is_email_verified:
        db.session.rollback()
        raise links.AlreadyVerified
    if address.mailed == user.email:
        # The form was sent twice, or the address was right: the link that is on its way stays good.
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
    # Asked before it is written: after that, reading a time that the database set costs a query.
    expires_in = kinds.PURGE_AFTER if user.purge_at is not None else None
    # No more urgent than the one before it: else whoever has every mail sent again goes before the others.
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
