"""Operators' actions on accounts: each is recorded in the audit, in the same commit."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import select

from webapp import audit
from webapp.accounts import account, links, sessions, signup, users
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import kinds


class NotPending(Exception):
    """The account is already verified, or locked."""


def resend(user: User) -> uuid.UUID | None:
    """Queue a pending user's link again, and commit; return None if one is already on its way.

    Raises NotPending.
    """
    users.lock_row(user)
    if user.is_email_verified or user.locked_at is not None:
        db.session.rollback()
        raise NotPending
    email_id = signup.post_again(user)
    if email_id is not None:
        audit.record("verification_resent", user.id)
    db.session.commit()
    return email_id


def end_sessions(user: User) -> int:
    """Sign out every browser of the user, and commit; return how many there were."""
    ended = sessions.revoke_all(user)
    if ended:
        audit.record("sessions_ended", user.id, detail=f"{ended} sessions")
    db.session.commit()
    return ended


def lock(user: User) -> bool:
    """Lock the account, end its sessions, void its links, and commit; return False if it was already locked.

    Links that put a former address back still work: its owner has the older claim, and they sign nobody in.
    """
    users.lock(user.email_key, user.username)
    users.lock_row(user)
    if user.locked_at is not None:
        db.session.rollback()
        return False
    user.locked_at = db_now()
    sessions.revoke_all(user)
    links.void_all(users.LOCKED, VerifyEmail.user_id == user.id, VerifyEmail.purpose != "revoke")
    audit.record("locked", user.id)
    db.session.commit()
    return True


def unlock(user: User) -> bool:
    """Let the owner sign in again, and commit; return whether the account was locked. Void links stay void."""
    users.lock_row(user)
    if user.locked_at is None:
        db.session.rollback()
        return False
    user.locked_at = None
    audit.record("unlocked", user.id)
    db.session.commit()
    return True


def delete(user: User) -> uuid.UUID | None:
    """Delete the account, and commit; return the id of the notice to its address, if that was proved."""
    return account.end(user, notice=kinds.ACCOUNT_REMOVED if user.is_email_verified else None)


def export(user: User) -> dict[str, Any]:
    """Return everything stored about this user, record the export, and commit."""
    audit.record("exported", user.id)
    db.session.commit()
    return account.export(user)


def events(user: User, *, limit: int) -> list[AuditEvent]:
    """Return the account's events, newest first. Failed sign-ins belong to no account."""
    query = select(AuditEvent).where(AuditEvent.user_id == user.id).order_by(AuditEvent.id.desc())
    return list(db.session.scalars(query.limit(limit)))
