"""The ways back into an account: a link for a forgotten password, and a password that is changed."""

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

# Whoever got no mail for so long has asked again.
WAITS = 2 * 86400.0


def ask(address: Address, locale: str, leads_to: str | None = None) -> uuid.UUID:
    """Promise a link to whoever this address belongs to, and commit; `leads_to` is where its person wants to go then.

    Never looks the address up: whom the link is for, if anybody, is the worker's to find out, so that this answers
    the same, as fast, for everybody's address.
    """
    email_id = posting.post(
        to_address=address.mailed,
        user_id=None,
        dedupe_key=f"reset:{uuid.uuid4()}",
        budget=outgoing_email.budget(outgoing_email.RESETS, address.key),
        template=RESET_TEMPLATE,
        locale=locale,
        priority=posting.VERIFICATION_PRIORITY,
        expires_in=WAITS,
        facts={"leads_to": leads_to} if leads_to else None,
    )
    if email_id is None:
        raise AssertionError("a new key cannot have a mail already")
    audit.record("reset_asked")
    db.session.commit()
    return email_id


def find_owner(email: OutgoingEmail) -> None:
    """Give a mail that was asked for its user and its link, when it is first claimed. The caller commits.

    An address that nobody has leaves it nobody's, and it is not sent: a mail to whoever a stranger named helps few,
    and every one that bounces harms the others.
    """
    user = users.find_by_address(email_addresses.address_key(email.to_address))
    # Whoever is being deleted has it no more, and whoever is being locked gets no way in.
    if user is None or not users.stays(user):
        return
    proof = links.begin(user, "reset", leads_to=(email.facts or {}).get("leads_to"))
    db.session.flush()
    db.session.scalars(
        update(OutgoingEmail)
        .where(OutgoingEmail.id == email.id, OutgoingEmail.lease_token == email.claim_token)
        # A known address is written to at its own spelling, in its own language.
        .values(user_id=user.id, verify_email_id=proof.id, to_address=user.email, locale=user.locale)
        .returning(OutgoingEmail),
        execution_options={"populate_existing": True, "synchronize_session": False},
    ).all()


def find(token_text: str) -> VerifyEmail:
    """Return what a link for a forgotten password is for, without judging its state. Raises LinkInvalid."""
    proof = links.find(token_text, "reset")
    if proof.user.email_key != proof.email_key:
        # Whoever reads the former address has no part in the account any more.
        raise LinkInvalid
    return proof


def reset_password(
    verification_id: uuid.UUID, *, password_hash: str, holder: User | None = None, username: str | None = None
) -> tuple[User, uuid.UUID | None]:
    """Give the link's user another password, sign out every browser, and commit; return the user, and the notice of it.

    A pending user is verified by that, as by the link of the signup: see verification.prove() for `holder`,
    `username`, and what it raises.
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


def change_password(user: User, password_hash: str) -> uuid.UUID | None:
    """Give the user, whose password was asked just now, another one; sign out every browser, and commit.

    Returns the notice of it. Raises PasswordChanged.
    """
    asked = user.password_hash
    users.hold(user)
    if user.password_hash != asked:
        # Whoever set it meanwhile shut the others out, perhaps this one.
        db.session.rollback()
        raise sessions.PasswordChanged
    user.password_hash = password_hash
    email_id = _shut_others_out(user, "password_changed")
    db.session.commit()
    return email_id


def _shut_others_out(user: User, action: str) -> uuid.UUID | None:
    """Let nobody in who came by the former password, or has a link to set another."""
    sessions.revoke_all(user)
    links.void_all(CHANGED, VerifyEmail.user_id == user.id, VerifyEmail.purpose == "reset")
    transitions.cancel(
        OutgoingEmail.budget == outgoing_email.budget(outgoing_email.RESETS, user.email_key),
        # Other accounts may have the same mailbox.
        func.lower(OutgoingEmail.to_address).in_({user.email.lower(), user.email_key}),
        reason=CHANGED,
    )
    audit.record(action, user.id)
    return notices.post(user, kinds.PASSWORD_CHANGED)
