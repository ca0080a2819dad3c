"""Resetting a forgotten password by a link, and changing a known one."""

from __future__ import annotations

import uuid

from sqlalchemy import func, update

from webapp import audit
from webapp.accounts import links, notices, sessions, users, verification
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.links import LinkInvalid, VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import kinds, outgoing_email, posting, transitions
from webapp.outbox.kinds import RESET_TEMPLATE
from webapp.outbox.outgoing_email import OutgoingEmail

# Why a link was withdrawn.
CHANGED = "the password was changed"

# How long an email waits to be sent: after that, the person has asked again.
WAITS = 2 * 86400.0


def ask(address: Address, locale: str, leads_to: str | None = None) -> uuid.UUID:
    """Queue a reset link for whoever owns this address, and commit; `leads_to` is where the person wants to go next.

    Never looks the address up: the worker finds out whom the link is for, if anybody, so that the answer and its
    timing are the same for every address.
    """
    email_id = posting.add(
        to_address=address.mailed,
        user_id=None,
        dedupe_key=f"reset:{uuid.uuid4()}",
        budget=outgoing_email.budget(outgoing_email.RESETS, address.key),
        template=RESET_TEMPLATE,
        locale=locale,
        priority=posting.VERIFICATION_PRIORITY,
        expires_in=WAITS,
        facts={name: fact for name, fact in {**notices.where_from(), "leads_to": leads_to}.items() if fact},
    )
    audit.record("reset_asked")
    db.session.commit()
    return email_id


def find_owner(email: OutgoingEmail) -> None:
    """Give a requested email its user and its link when it is first claimed. The caller commits.

    If nobody has the address, the email keeps neither and is not sent: few people would be helped by an email to an
    address that a stranger typed, and each bounce harms the delivery of the others.
    """
    user = users.find_by_address(email_addresses.address_key(email.to_address))
    # A user who is being deleted no longer has the address, and one who is being locked must get no link.
    if user is None or not users.stays(user):
        return
    proof = links.begin(user, "reset", leads_to=(email.facts or {}).get("leads_to"))
    db.session.flush()
    db.session.scalars(
        update(OutgoingEmail)
        .where(OutgoingEmail.id == email.id, OutgoingEmail.lease_token == email.claim_token)
        # Use the user's spelling of the address, and the user's language.
        .values(user_id=user.id, verify_email_id=proof.id, to_address=user.email, locale=user.locale)
        .returning(OutgoingEmail),
        execution_options={"populate_existing": True, "synchronize_session": False},
    ).all()


def find(token_text: str) -> VerifyEmail:
    """Return the row of a reset link, whatever its state. Raises LinkInvalid."""
    proof = links.find(token_text, "reset")
    if proof.user.email_key != proof.email_key:
        # Sent to a former address, whose owner no longer has a claim to the account.
        raise LinkInvalid
    return proof


def reset_password(
    verification_id: uuid.UUID, *, password_hash: str, holder: User | None = None, username: str | None = None
) -> tuple[User, uuid.UUID]:
    """Set the password of the link's user, sign out every browser, and commit; return the user and the notice's id.

    This also verifies a pending user, as the signup's link does: see verification.prove() for `holder`, `username`
    and what it raises.
    """
    proof = db.session.get_one(VerifyEmail, verification_id)
    user = proof.user
    if user.is_email_verified:
        users.lock(user.email_key, user.username)
        db.session.refresh(proof)
        db.session.refresh(user, with_for_update=True)
        links.check(proof)
        if user.email_key != proof.email_key or user.locked_at is not None:
            raise LinkInvalid
        proof.used_at = db_now()
        user.password_hash = password_hash
    else:
        user = verification.prove(proof, holder=holder, username=username, password_hash=password_hash)
    email_id = _shut_others_out(user, "password_reset")
    verification.commit()
    return user, email_id


def change_password(user: User, password_hash: str) -> uuid.UUID:
    """Set another password for the user, who just gave the current one; sign out every browser, and commit.

    Returns the notice's id. Raises PasswordChanged.
    """
    asked = user.password_hash
    users.lock_row(user)
    if user.password_hash != asked:
        # Somebody else changed it in the meantime, to shut others out, perhaps this person.
        db.session.rollback()
        raise sessions.PasswordChanged
    user.password_hash = password_hash
    email_id = _shut_others_out(user, "password_changed")
    db.session.commit()
    return email_id


def _shut_others_out(user: User, action: str) -> uuid.UUID:
    """End all sessions, void reset links, cancel requested ones, and queue the notice; return its id."""
    sessions.revoke_all(user)
    links.void_all(CHANGED, VerifyEmail.user_id == user.id, VerifyEmail.purpose == "reset")
    transitions.cancel(
        OutgoingEmail.budget == outgoing_email.budget(outgoing_email.RESETS, user.email_key),
        # Other accounts may share the mailbox.
        func.lower(OutgoingEmail.to_address).in_({user.email.lower(), user.email_key}),
        reason=CHANGED,
    )
    audit.record(action, user.id)
    return notices.post(user, kinds.PASSWORD_CHANGED)
