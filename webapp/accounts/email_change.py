"""Changing an address: requested with the password, proved by link or code, undone by the owner of the old one."""

from __future__ import annotations

import uuid

from sqlalchemy import ColumnElement, or_, select

from webapp import audit, signals
from webapp.accounts import codes, links, notices, sessions, users, verification
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.links import AlreadyVerified, LinkInvalid, VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import kinds

# Why a link was withdrawn.
ASKED_AGAIN = "another address was asked for"
CALLED_OFF = "the address stays"
CHANGED = "the address was changed"
PUT_BACK = "an earlier address was put back"

# How long a change waits to be confirmed, and its email to be sent.
WAITS = 7 * 86400.0


class AddressTaken(Exception):
    """The address now belongs to another account."""


def ask(user: User, address: Address, session_token: str, leads_to: str | None = None) -> uuid.UUID | None:
    """Queue a link and a code for the new address, void those of an earlier request, and commit.

    `leads_to`: where the person wants to go after confirming; None keeps the earlier request's.
    Never looks the address up: as at signup, the worker decides what a known one means.
    """
    users.lock_row(user)
    if former := awaited(user):
        links.void(former, ASKED_AGAIN)
        leads_to = leads_to or former.leads_to
    proof = links.begin(user, "change", becomes=address, asked_by=sessions.hashed(session_token), leads_to=leads_to)
    email_id = links.post_link(proof, to_address=address.mailed, expires_in=WAITS)
    audit.record("address_asked", user.id)
    db.session.commit()
    return email_id


def awaited(user: User) -> VerifyEmail | None:
    """Return the change that the user requested and has not confirmed yet.

    Its link may have expired, or somebody else may have proved the address: the result does not reveal which.
    """
    current = links.current_for(user, "change")
    if current is None or current.used_at is not None:
        return None
    is_recent = select(VerifyEmail.created_at > db_now(-WAITS)).where(VerifyEmail.id == current.id)
    return current if db.session.scalar(is_recent) else None


def is_asked_by(proof: VerifyEmail, session_token: str) -> bool:
    """Return whether this session requested the change: only there does the code count."""
    return proof.asked_by == sessions.hashed(session_token)


def resend(user: User) -> uuid.UUID | None:
    """Queue the same link and code again, and commit; return None if they are already on their way."""
    current = awaited(user)
    email_id = None
    if current is not None and current.email is not None:
        email_id = links.post_link(current, to_address=current.email, expires_in=WAITS)
    db.session.commit()
    return email_id


def call_off(user: User) -> None:
    """Withdraw the requested change, and commit."""
    users.lock_row(user)
    if current := awaited(user):
        links.void(current, CALLED_OFF)
        audit.record("address_called_off", user.id)
    db.session.commit()


def confirm_by_code(user: User, typed: str, session_token: str) -> uuid.UUID:
    """Do as confirm(), by a code that counts only in the session that asked.

    Raises CodeWrong, TooManyTries or ReceiverFailed.
    """
    proof = awaited(user)
    if proof is None:
        raise codes.CodeWrong
    users.lock(proof.email_key, user.username)
    codes.judge(user, proof.email_key, proof if is_asked_by(proof, session_token) else None, typed)
    try:
        return confirm(proof.id)
    except (AlreadyVerified, LinkInvalid, AddressTaken) as error:
        raise codes.CodeWrong from error


def confirm(verification_id: uuid.UUID) -> uuid.UUID:
    """Give the account the address that the link proves, and commit; the first to confirm an address gets it.

    Returns the id of the notice to the former address, which has a link to undo the change. Raises AlreadyVerified,
    LinkInvalid, LinkExpired, AddressTaken or ReceiverFailed.
    """
    proof, user = _locked(verification_id)
    former = Address(mailed=user.email, key=user.email_key)
    _give(user, proof, CHANGED, VerifyEmail.purpose != "revoke")
    undo = links.begin(user, "revoke", becomes=former)
    db.session.flush()
    email_id = notices.post(user, kinds.ADDRESS_CHANGED, to_address=former.mailed, verify_email_id=undo.id)
    audit.record("address_changed", user.id)
    links.cancel_mail(proof, "already verified")
    signals.send(signals.email_changed, user, former=former.mailed, email=user.email)
    db.session.commit()
    return email_id


def put_back(verification_id: uuid.UUID, password_hash: str) -> None:
    """Give the account its former address again, sign out every browser, and commit.

    Whoever changed the address knew the password, so it is replaced: `password_hash` is of one that nobody knows.
    Raises as confirm() does.
    """
    proof, user = _locked(verification_id)
    changed = user.email
    # Keep the links that put even earlier addresses back: their owners have the older claim.
    _give(user, proof, PUT_BACK, or_(VerifyEmail.purpose != "revoke", VerifyEmail.created_at > proof.created_at))
    user.password_hash = password_hash
    audit.record("address_put_back", user.id)
    sessions.revoke_all(user)
    signals.send(signals.email_changed, user, former=changed, email=user.email)
    db.session.commit()


def check(proof: VerifyEmail) -> None:
    """Raises AddressTaken, or as links.check() does."""
    if proof.void_reason == links.OUTRUN:
        raise AddressTaken
    links.check(proof)


def _locked(verification_id: uuid.UUID) -> tuple[VerifyEmail, User]:
    """Return the proof and its user, locked until the commit. Raises as confirm() does."""
    proof = db.session.get(VerifyEmail, verification_id)
    if proof is None:
        # Just deleted together with its user.
        raise LinkInvalid
    user = proof.user
    users.lock(proof.email_key, user.username)
    users.lock_row(user)
    db.session.refresh(proof)
    check(proof)
    if user.locked_at is not None and proof.purpose != "revoke":
        raise LinkInvalid
    owner = users.find_verified(email_key=proof.email_key)
    if owner is not None and owner is not user:
        db.session.rollback()
        raise AddressTaken
    return proof, user


def _give(user: User, proof: VerifyEmail, reason: str, dead: ColumnElement[bool]) -> None:
    """Give the user the proved address, and withdraw those of its other links that match `dead`."""
    if proof.email is None:
        raise AssertionError("a changed address has a spelling")
    user.email, user.email_key = proof.email, proof.email_key
    proof.used_at = db_now()
    verification.void_rivals(proof.email_key, but=proof)
    links.void_all(reason, VerifyEmail.user_id == user.id, VerifyEmail.id != proof.id, dead)
