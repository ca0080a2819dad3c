"""Codes: six digits from the email, typed in the browser that signed up, with few wrong tries."""

from __future__ import annotations

import hmac
import re
from datetime import datetime

from sqlalchemy import ForeignKey, Index, String, func, select
from sqlalchemy.orm import Mapped, mapped_column

from webapp.accounts import links, users, verification
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.links import AlreadyVerified, LinkInvalid, VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import NUMBERED_ONCE, Model, db
from webapp.db.clock import db_now

# Wrong codes allowed: per signup, whatever is resent or changed, and per address and day.
TRIES_OF_A_SIGNUP = 5
TRIES_OF_AN_ADDRESS = 20
DAY = 86400.0


class CodeWrong(Exception):
    """A wrong or expired code, or one whose email was not sent yet: the page must not tell them apart."""


class TooManyTries(Exception):
    """No code is accepted any more; the link still is."""


class CodeTry(Model):
    """A wrong code that somebody typed."""

    __tablename__ = "code_tries"
    __table_args__ = (
        Index("ix_code_tries_user_id", "user_id"),
        Index("ix_code_tries_email_key", "email_key", "tried_at"),
        NUMBERED_ONCE,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    email_key: Mapped[str] = mapped_column(String(email_addresses.EMAIL_MAX))
    tried_at: Mapped[datetime]


def confirm(user: User, typed: str, *, username: str | None = None) -> User:
    """Verify the pending user by the code in its email, and commit.

    Raises CodeWrong, TooManyTries, UsernameTaken or AlreadyVerified.
    """
    # One guess at a time per address: otherwise a hundred at once would each count as the first.
    users.lock(user.email_key, user.username)
    db.session.refresh(user)
    if user.is_email_verified:
        # The address's owner verified it just now: an account's tries belong to its owner.
        db.session.rollback()
        raise AlreadyVerified
    proof = judge(user, user.email_key, links.current_for(user), typed)
    try:
        return verification.confirm(proof.id, username=username)
    except AlreadyVerified:
        raise
    except LinkInvalid as error:
        raise CodeWrong from error


def judge(user: User, email_key: str, proof: VerifyEmail | None, typed: str) -> VerifyEmail:
    """Return the proof if this is its code; a wrong code is counted for the address, which the caller has locked.

    Raises CodeWrong after committing the try, or TooManyTries after a rollback.
    """
    if _are_used_up(user, email_key):
        db.session.rollback()
        raise TooManyTries
    if proof is None or not _matches(proof, typed):
        db.session.add(CodeTry(user_id=user.id, email_key=email_key, tried_at=db_now()))
        db.session.commit()
        raise CodeWrong
    return proof


def _are_used_up(user: User, email_key: str) -> bool:
    of_user = CodeTry.user_id == user.id
    # A signup's tries count as long as it exists; an account lasts for years, so its tries count for a day.
    if user.is_email_verified:
        of_user &= CodeTry.tried_at > db_now(-DAY)
    of_signup = select(func.count()).where(of_user).scalar_subquery()
    of_address = (
        select(func.count()).where(CodeTry.email_key == email_key, CodeTry.tried_at > db_now(-DAY)).scalar_subquery()
    )
    signups, addresses = db.session.execute(select(of_signup, of_address)).one()
    return bool(signups >= TRIES_OF_A_SIGNUP or addresses >= TRIES_OF_AN_ADDRESS)


def _matches(proof: VerifyEmail, typed: str) -> bool:
    digits = re.sub(r"[^0-9]", "", typed)
    is_alive = db.session.scalar(
        select(VerifyEmail.code_expires_at > db_now()).where(
            VerifyEmail.id == proof.id, VerifyEmail.used_at.is_(None), VerifyEmail.voided_at.is_(None)
        )
    )
    # Always compared: timing must not reveal whether there is a code.
    is_same = hmac.compare_digest(links.code(proof), digits)
    return bool(is_alive) and is_same
