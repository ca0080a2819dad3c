"""Proving that an address belongs to somebody: confirming its links, and disowning them."""

from __future__ import annotations

import uuid

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from webapp import audit, signals
from webapp.accounts import users
from webapp.accounts.links import (
    DISOWNED,
    OUTRUN,
    LinkInvalid,
    VerifyEmail,
    cancel_mail,
    check,
    current_for,
    void,
    void_all,
)
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now, was_lately

# Answers arrive within this many seconds.
RECENT_SECONDS = 1.0


def is_recent(user: User) -> bool:
    """Return whether the user was verified so recently that the browser may not know it yet."""
    lately = select(was_lately(User.email_verified_at, RECENT_SECONDS)).where(User.id == user.id)
    return db.session.scalar(lately) is True


def confirm(
    verification_id: uuid.UUID,
    *,
    holder: User | None = None,
    username: str | None = None,
    password_hash: str | None = None,
) -> User:
    """Do as prove(), and commit."""
    verification = db.session.get_one(VerifyEmail, verification_id)
    user = prove(verification, holder=holder, username=username, password_hash=password_hash)
    commit()
    return user


def prove(
    verification: VerifyEmail,
    *,
    holder: User | None = None,
    username: str | None = None,
    password_hash: str | None = None,
) -> User:
    """Verify the user in the caller's transaction; of several signups for one address, the first wins.

    `holder` is the pending user of the browser that opened the link: a link proves its address, whichever signup of
    that address it was sent for. `username` replaces one that was taken while the signup waited, `password_hash` that
    of a forgotten password. Raises AlreadyVerified, LinkInvalid, LinkExpired, UsernameTaken or ReceiverFailed.
    """
    user = holder if holder is not None and holder.email_key == verification.email_key else verification.user
    name = username or user.username
    users.lock(user.email_key, name)
    db.session.refresh(verification)
    # Lock the row too, so that nobody changes its address in the meantime.
    db.session.refresh(user, with_for_update=True)
    check(verification)
    if user.email_key != verification.email_key or user.locked_at is not None:
        raise LinkInvalid
    if users.is_username_taken(name, asked_by=user):
        raise users.UsernameTaken
    verification.used_at = db_now()
    user.email_verified_at = db_now()
    user.purge_at = None
    if password_hash is not None:
        user.password_hash = password_hash
    former = user.username
    users.name(user, name)
    if (own := current_for(user)) and own is not verification:
        own.used_at = db_now()
        cancel_mail(own, "already verified")
    audit.record("verified", user.id)
    void_rivals(verification.email_key, but=verification)
    cancel_mail(verification, "already verified")
    signals.send(signals.user_verified, user)
    if name != former:
        signals.send(signals.user_renamed, user, former=former, username=name)
    return user


def commit() -> None:
    """Commit after prove(). Raises LinkInvalid."""
    try:
        db.session.commit()
    except IntegrityError as error:
        # Another signup verified this address first, which makes this link void.
        db.session.rollback()
        raise LinkInvalid from error


def disown(verification_id: uuid.UUID) -> None:
    """Withdraw a signup's link whose recipient did not sign up, and commit. Raises as check() does."""
    verification = db.session.get_one(VerifyEmail, verification_id)
    check(verification)
    void(verification, DISOWNED)
    audit.record("disowned", verification.user_id)
    db.session.commit()


def own_again(verification_id: uuid.UUID) -> None:
    """Undo disown(), and commit. Raises LinkInvalid if that is not what voided the link."""
    verification = db.session.get_one(VerifyEmail, verification_id)
    if verification.void_reason != DISOWNED:
        raise LinkInvalid
    verification.voided_at = verification.void_reason = None
    audit.record("owned_again", verification.user_id)
    db.session.commit()


def void_rivals(email_key: str, *, but: VerifyEmail | None = None) -> None:
    """Withdraw all other links to an address that now belongs to an account. The caller commits."""
    void_all(OUTRUN, VerifyEmail.email_key == email_key, *([VerifyEmail.id != but.id] if but else []))


def leads_to(user: User) -> str | None:
    """Return where the user wanted to go when signing up, whatever its link or address is by now."""
    return db.session.scalar(
        select(VerifyEmail.leads_to)
        .where(VerifyEmail.user_id == user.id, VerifyEmail.purpose == "signup", VerifyEmail.leads_to.is_not(None))
        .order_by(VerifyEmail.created_at.desc())
        .limit(1)
    )
