"""Acts of operators on accounts: each is noted in the audit, in the commit that does it."""

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
    """The account needs no link that verifies it, or must not have one."""


def resend(user: User) -> uuid.UUID | None:
    """Promise a pending user's link again, and commit; nothing when one is on its way already.

    Raises NotPending.
    """
    users.hold(user)
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
    """Let nobody sign in to the account, and void its links and sessions; commit; return whether it was open.

    But for the link that puts a former address back: whoever had that has the older right, and is not let in by it.
    """
    users.lock(user.email_key, user.username)
    users.hold(user)
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
    """Let its owner sign in again, and commit; return whether it was locked. What was void stays so."""
    users.hold(user)
    if user.locked_at is None:
        db.session.rollback()
        return False
    user.locked_at = None
    audit.record("unlocked", user.id)
    db.session.commit()
    return True


def delete(user: User) -> uuid.UUID | None:
    """Delete the account, and commit; return the mail that says so to its address, if that was proved."""
    return account.end(user, notice=kinds.ACCOUNT_REMOVED if user.is_email_verified else None)


def export(user: User) -> dict[str, Any]:
    """Return all that is kept of this user, note that somebody asked for it, and commit."""
    audit.record("exported", user.id)
    db.session.commit()
    return account.export(user)


def events(user: User, *, limit: int) -> list[AuditEvent]:
    """Return what happened to the account, the newest first. A failed sign-in is nobody's."""
    query = select(AuditEvent).where(AuditEvent.user_id == user.id).order_by(AuditEvent.id.desc())
    return list(db.session.scalars(query.limit(limit)))
