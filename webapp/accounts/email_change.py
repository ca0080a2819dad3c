"""A changed address: asked for with the password, proved by link or code, and put back by whoever had the old one."""

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

# After this the account no longer waits for the answer to a mail.
WAITS = 7 * 86400.0


class AddressTaken(Exception):
    """The address belongs to another account by now."""


def ask(user: User, address: Address, session_token: str, leads_to: str | None = None) -> uuid.UUID | None:
    """Promise the new address a link and a code; those of an earlier wish are void. Commits.

    `leads_to`: where the person wants to go once it is confirmed, if anywhere else than before.
    Never looks the address up: what a known one means is the worker's to decide, as at signup.
    """
    users.hold(user)
    if former := awaited(user):
        links.void(former, ASKED_AGAIN)
        leads_to = leads_to or former.leads_to
    proof = links.begin(user, "change", becomes=address, asked_by=sessions.hashed(session_token), leads_to=leads_to)
    email_id = links.post_link(proof, to_address=address.mailed, expires_in=WAITS)
    audit.record("address_asked", user.id)
    db.session.commit()
    return email_id


def awaited(user: User) -> VerifyEmail | None:
    """Return the change that the user asked for and did not confirm.

    Its link may have expired, or somebody else may have proved the address: nothing here tells which.
    """
    current = links.current_for(user, "change")
    if current is None or current.used_at is not None:
        return None
    is_recent = select(VerifyEmail.created_at > db_now(-WAITS)).where(VerifyEmail.id == current.id)
    return current if db.session.scalar(is_recent) else None


def is_asked_by(proof: VerifyEmail, session_token: str) -> bool:
    """Return whether it was this session that asked for the change: the only one in which the code counts."""
    return proof.asked_by == sessions.hashed(session_token)


def resend(user: User) -> uuid.UUID | None:
    """Promise the same link and code again, and commit; nothing when they are on their way already."""
    current = awaited(user)
    email_id = None
    if current is not None and current.email is not None:
        email_id = links.post_link(current, to_address=current.email, expires_in=WAITS)
    db.session.commit()
    return email_id


def call_off(user: User) -> None:
    """Withdraw the change that was asked for, and commit."""
    users.hold(user)
    if current := awaited(user):
        links.void(current, CALLED_OFF)
        audit.record("address_called_off", user.id)
    db.session.commit()


def confirm_by_code(user: User, typed: str, session_token: str) -> uuid.UUID | None:
    """Do as confirm(); the code counts only in the session that asked. Raises CodeWrong or TooManyTries too."""
    proof = awaited(user)
    if proof is None:
        raise codes.CodeWrong
    users.lock(proof.email_key, user.username)
    codes.judge(user, proof.email_key, proof if is_asked_by(proof, session_token) else None, typed)
    try:
        return confirm(proof.id)
    except (AlreadyVerified, LinkInvalid, AddressTaken) as error:
        raise codes.CodeWrong from error


def confirm(verification_id: uuid.UUID) -> uuid.UUID | None:
    """Give the account the address that the link proves, and commit; of rivals for one address the first wins.

    Returns the mail that tells the former address, with a link that undoes it. Raises AlreadyVerified,
    LinkInvalid, LinkExpired, AddressTaken or ReceiverFailed.
    """
    proof, user = _locked(verification_id)
    former = Address(mailed=user.email, key=user.email_key)
    _give(user, proof, CHANGED, VerifyEmail.purpose != "revoke")
    undo = links.begin(user, "revoke", becomes=former)
    db.session.flush()
    email_id = notices.post(user, kinds.ADDRESS_CHANGED, to_address=former.mailed, verify_email_id=undo.id)
    audit.record("address_changed", user.id)
    links.cancel_mail(proof, "verified meanwhile")
    signals.send(signals.email_changed, user, former=former.mailed, email=user.email)
    db.session.commit()
    return email_id


def put_back(verification_id: uuid.UUID, password_hash: str) -> None:
    """Give the account its former address again, sign out every browser, and commit.

    Whoever changed the address knew the password: `password_hash`, of one that nobody knows, takes its place.
    Raises as confirm() does.
    """
    proof, user = _locked(verification_id)
    changed = user.email
    # Not the ways back to the addresses before this one: whoever holds those has the older right.
    _give(user, proof, PUT_BACK, or_(VerifyEmail.purpose != "revoke", VerifyEmail.created_at > proof.created_at))
    user.password_hash = password_hash
    audit.record("address_put_back", user.id)
    sessions.revoke_all(user)
    signals.send(signals.email_changed, user, former=changed, email=user.email)
    db.session.commit()


def check(proof: VerifyEmail) -> None:
    """Raises AddressTaken, or as verification.check() does."""
    if proof.void_reason == links.OUTRUN:
        raise AddressTaken
    links.check(proof)


def _locked(verification_id: uuid.UUID) -> tuple[VerifyEmail, User]:
    """Return the proof and its user, which nobody else changes until the commit. Raises as confirm() does."""
    proof = db.session.get(VerifyEmail, verification_id)
    if proof is None:
        # Deleted with its user, just now.
        raise LinkInvalid
    user = proof.user
    users.lock(proof.email_key, user.username)
    users.hold(user)
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
    """Let the user have the proved address, and withdraw the user's other links that are `dead` with that."""
    if proof.email is None:
        raise AssertionError("a changed address has a spelling")
    user.email, user.email_key = proof.email, proof.email_key
    proof.used_at = db_now()
    verification.void_rivals(proof.email_key, but=proof)
    links.void_all(reason, VerifyEmail.user_id == user.id, VerifyEmail.id != proof.id, dead)
