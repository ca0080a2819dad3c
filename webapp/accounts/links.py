"""Links that prove an address: their rows, their secrets and their emails."""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flask import current_app
from sqlalchemy import ColumnElement, ForeignKey, Index, String, delete, func, or_, select, update
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.accounts import tokens
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.users import LOCKED, User
from webapp.db.base import Model, db
from webapp.db.clock import db_now
from webapp.outbox import outgoing_email, posting, transitions
from webapp.outbox.outgoing_email import OutgoingEmail

# Path by purpose: a link proves the address of a signup, or the new one of an account, puts an account's former
# address back, or lets the owner set another password.
PATHS = {
    "signup": "/verify",
    "change": "/account/email/confirm",
    "revoke": "/account/email/revoke",
    "reset": "/reset",
}

# The longest URL that people can be sent on to.
LEADS_TO_MAX = 1000

# How long a changed address can be put back, from the hand-off of the notice.
REVOKE_SECONDS = 86400
DISOWNED = "disowned by its recipient"
OUTRUN = "address verified by another signup"


class LinkInvalid(Exception):
    """Not a link of ours, or one that was withdrawn."""


class LinkExpired(LinkInvalid):
    """A link of ours that expired; `verification` is its row."""

    def __init__(self, verification: VerifyEmail) -> None:
        self.verification = verification
        super().__init__()


class AlreadyVerified(Exception):
    """The link was already used."""


class VerifyEmail(Model):
    """One chance to prove one address. No secret is stored: link and code are computed from the id."""

    __tablename__ = "verify_emails"
    __table_args__ = (Index("ix_verify_emails_user_id", "user_id"), Index("ix_verify_emails_email_key", "email_key"))

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    email_key: Mapped[str] = mapped_column(String(email_addresses.EMAIL_MAX))
    # The account's new address, and the hash of the session that asked for it; a signup's link has neither.
    email: Mapped[str | None] = mapped_column(String(email_addresses.EMAIL_MAX))
    asked_by: Mapped[str | None] = mapped_column(String(64))
    purpose: Mapped[str] = mapped_column(String(10))
    key_id: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    # Set at the first hand-off; before that there is nothing that could expire.
    expires_at: Mapped[datetime | None]
    code_expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]
    voided_at: Mapped[datetime | None]
    void_reason: Mapped[str | None] = mapped_column(String(50))
    # Where the person wanted to go. Pages check it again before they redirect there.
    leads_to: Mapped[str | None] = mapped_column(String(LEADS_TO_MAX))

    user: Mapped[User] = relationship()


def begin(
    user: User,
    purpose: str,
    *,
    becomes: email_addresses.Address | None = None,
    asked_by: str | None = None,
    leads_to: str | None = None,
) -> VerifyEmail:
    """Add a verification of the user's address, or of `becomes`; a locked user's is void. The caller commits."""
    verification = VerifyEmail(
        id=uuid.uuid4(),
        user=user,
        email_key=becomes.key if becomes else user.email_key,
        email=becomes.mailed if becomes else None,
        asked_by=asked_by,
        purpose=purpose,
        key_id=tokens.newest_key(),
        created_at=db_now(),
        leads_to=leads_to,
        voided_at=db_now() if user.locked_at else None,
        void_reason=LOCKED if user.locked_at else None,
    )
    db.session.add(verification)
    return verification


def post_link(
    verification: VerifyEmail,
    *,
    to_address: str,
    priority: int = posting.VERIFICATION_PRIORITY,
    expires_in: float | None = None,
) -> uuid.UUID | None:
    """Queue the link's email in the caller's transaction; return None if one is already on its way."""
    db.session.flush()
    return posting.post(
        **about(verification.id, verification.purpose, verification.email_key),
        to_address=to_address,
        user_id=verification.user_id,
        locale=verification.user.locale,
        priority=priority,
        expires_in=expires_in,
    )


def about(verification_id: uuid.UUID, purpose: str, email_key: str) -> dict[str, Any]:
    """Return the columns that all emails with this link share."""
    return {
        "verify_email_id": verification_id,
        "dedupe_key": f"verify:{verification_id}",
        "budget": outgoing_email.budget(purpose, email_key),
    }


def latest_mail(user: User) -> OutgoingEmail | None:
    """Return the newest email of this signup: the only kind that its browser may know about."""
    return db.session.scalar(
        select(OutgoingEmail)
        .join(VerifyEmail, VerifyEmail.id == OutgoingEmail.verify_email_id)
        .where(OutgoingEmail.user_id == user.id, VerifyEmail.purpose == "signup")
        .order_by(OutgoingEmail.created_at.desc())
        .limit(1)
    )


def current_for(user: User, purpose: str = "signup") -> VerifyEmail | None:
    """Return the user's newest verification, except those withdrawn on the user's side."""
    return db.session.scalar(
        select(VerifyEmail)
        .where(
            VerifyEmail.user_id == user.id,
            VerifyEmail.purpose == purpose,
            # Void because another signup verified the address, it still counts as current: otherwise this browser
            # could tell, by what it can do and what we do for it, that somebody verified.
            or_(VerifyEmail.voided_at.is_(None), VerifyEmail.void_reason == OUTRUN),
        )
        .order_by(VerifyEmail.created_at.desc())
        .limit(1)
    )


def load(ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, VerifyEmail]:
    """Return these verifications by id, read again."""
    query = select(VerifyEmail).where(VerifyEmail.id.in_(ids)).execution_options(populate_existing=True)
    return {verification.id: verification for verification in db.session.scalars(query)} if ids else {}


def count_voided(user: User, reason: str) -> int:
    query = select(func.count()).where(VerifyEmail.user_id == user.id, VerifyEmail.void_reason == reason)
    return db.session.scalar(query) or 0


def ensure_key(verification: VerifyEmail) -> None:
    """Switch to the newest key if the verification's key is gone: its old links no longer work anyway."""
    if not tokens.is_kept(verification.key_id):
        verification.key_id = tokens.newest_key()


def link(verification: VerifyEmail) -> str:
    return f"{current_app.config['PUBLIC_URL']}{PATHS[verification.purpose]}/{token(verification)}"


def token(verification: VerifyEmail) -> str:
    """Return the link's secret part: the same every time, as long as its key is kept."""
    return tokens.token(verification.id, verification.purpose, verification.key_id)


def code(verification: VerifyEmail) -> str:
    """Return the six digits in this verification's email: the same every time, as long as its key is kept."""
    return tokens.code(verification.id, verification.purpose, verification.key_id)


def find(token_text: str, purpose: str = "signup") -> VerifyEmail:
    """Return the row of a link of this purpose, whatever its state. Raises LinkInvalid."""
    verification_id = tokens.read(token_text)
    verification = db.session.get(VerifyEmail, verification_id) if verification_id else None
    if verification is None or verification.purpose != purpose or not tokens.is_kept(verification.key_id):
        raise LinkInvalid
    # Compared as text, since several texts decode to the same bytes.
    if not hmac.compare_digest(token(verification), token_text):
        raise LinkInvalid
    return verification


def check(verification: VerifyEmail) -> None:
    """Raises AlreadyVerified, LinkInvalid or LinkExpired."""
    if verification.used_at is not None:
        raise AlreadyVerified
    if verification.voided_at is not None:
        raise LinkInvalid
    expired = VerifyEmail.expires_at.is_not(None) & (VerifyEmail.expires_at <= db_now())
    if db.session.scalar(select(expired).where(VerifyEmail.id == verification.id)):
        raise LinkExpired(verification)


def void(verification: VerifyEmail, reason: str) -> None:
    """Withdraw the link and its code, and cancel their waiting email. The caller commits."""
    verification.voided_at, verification.void_reason = db_now(), reason
    cancel_mail(verification, reason)


def cancel_mail(verification: VerifyEmail, reason: str) -> None:
    transitions.cancel(OutgoingEmail.verify_email_id == verification.id, reason=reason)


def hand_off(purpose: str) -> dict[str, float]:
    """Return how many seconds a link and its code work after the hand-off of their email, as settle() takes it."""
    return {"link_lives": lives(purpose), "code_lives": current_app.config["VERIFY_CODE_TTL"]}


def lives(purpose: str) -> int:
    """Return how many seconds a link works after its hand-off."""
    if purpose == "revoke":
        return REVOKE_SECONDS
    return int(current_app.config["RESET_EMAIL_TTL" if purpose == "reset" else "VERIFY_EMAIL_TTL"])


def delete_of(user_ids: Sequence[int]) -> None:
    """Delete the links of users who are about to be deleted, so that no email refers to them. The caller commits.

    PostgreSQL's own cascade may do this too late: it runs a user's constraints in the order of their numbers read as
    text, which a restored dump changes, and then finds an email that still refers to a deleted link.
    """
    db.session.execute(
        delete(VerifyEmail).where(VerifyEmail.user_id.in_(user_ids)),
        execution_options={"synchronize_session": False},
    )


def void_all(reason: str, *which: ColumnElement[bool]) -> None:
    """Withdraw the matching links that are still unused. The caller commits."""
    db.session.execute(
        update(VerifyEmail)
        .where(VerifyEmail.used_at.is_(None), VerifyEmail.voided_at.is_(None), *which)
        .values(voided_at=db_now(), void_reason=reason),
        execution_options={"synchronize_session": False},
    )
