"""An account in its owner's hands: renamed, exported, deleted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from webapp import audit, signals
from webapp.accounts import notices, users
from webapp.accounts.identifiers import usernames
from webapp.accounts.links import VerifyEmail
from webapp.accounts.sessions import UserSession
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.outbox import kinds, transitions
from webapp.outbox.outgoing_email import OutgoingEmail


def rename(
    user: User, *, username: str, full_name: str, own: Mapping[str, str] = MappingProxyType({})
) -> uuid.UUID | None:
    """Commit other names and fields of one's own; return the mail that says so, if it is a name to sign in with.

    Raises UsernameTaken or ReceiverFailed.
    """
    users.lock(user.email_key, username)
    users.hold(user)
    if usernames.key(username) != user.username_key and users.is_username_taken(username, asked_by=user):
        db.session.rollback()
        raise users.UsernameTaken
    changed = [
        field
        for field, former, new in (
            ("username", user.username, username),
            ("full name", user.full_name, full_name),
            *((name, getattr(user, name), value) for name, value in own.items()),
        )
        if former != new
    ]
    former = user.username
    users.name(user, username)
    user.full_name = full_name
    for name, value in own.items():
        setattr(user, name, value)
    if changed:
        audit.record("renamed", user.id, detail=", ".join(changed))
    email_id = notices.post(user, kinds.USERNAME_CHANGED) if "username" in changed else None
    try:
        if "username" in changed:
            signals.send(signals.user_renamed, user, former=former, username=username)
        db.session.commit()
    except IntegrityError as error:
        db.session.rollback()
        raise users.UsernameTaken from error
    return email_id


def end(user: User, *, notice: str | None = kinds.ACCOUNT_DELETED) -> uuid.UUID | None:
    """Delete the account and all that is its own, and commit; return the mail that says so to its address.

    `notice`: its template, or none for an address that was not proved.
    Its mails that wait are canceled, its links and sessions go with it, its events stay without it. Raises
    ReceiverFailed.
    """
    # First its mails, then the user, as a worker does that writes down an outcome: else the two could wait for each
    # other.
    db.session.scalars(select(OutgoingEmail.id).where(OutgoingEmail.user_id == user.id).with_for_update()).all()
    users.hold(user)
    transitions.cancel(OutgoingEmail.user_id == user.id, reason="its user is gone")
    audit.record("account_deleted", detail=f"user {user.id}")
    email_id = notices.post(user, notice) if notice else None
    # While there is somebody to delete: others' rows may refer to its own. Of a mere signup nobody was told.
    if user.is_email_verified:
        signals.send(signals.user_deleted, user)
    db.session.execute(delete(User).where(User.id == user.id), execution_options={"synchronize_session": False})
    db.session.commit()
    return email_id


def export(user: User) -> dict[str, Any]:
    """Return all that is kept of this user, but for what proves who it is: hashes and links."""
    links = {link.id: link for link in db.session.scalars(select(VerifyEmail).where(VerifyEmail.user_id == user.id))}
    own_mails = select(OutgoingEmail).where(OutgoingEmail.user_id == user.id).order_by(OutgoingEmail.created_at)
    own_sessions = select(UserSession).where(UserSession.user_id == user.id).order_by(UserSession.id)
    own_events = select(AuditEvent).where(AuditEvent.user_id == user.id).order_by(AuditEvent.id)
    return {
        "account": {
            "username": user.username,
            "full_name": user.full_name,
            **{column.name: getattr(user, column.name) for column in users.OWN_FIELDS},
            "email": user.email,
            "email_verified_at": user.email_verified_at,
            "locked_at": user.locked_at,
            "role": user.role,
            "language": user.locale,
            "created_at": user.created_at,
        },
        "sessions": [
            {
                "browser": one.browser,
                "system": one.system,
                "ip_address": one.address,
                "created_at": one.created_at,
                "last_seen_at": one.seen_at,
                "ended_at": one.revoked_at,
            }
            for one in db.session.scalars(own_sessions)
        ],
        "mails": [
            _mail(user, email, links.get(email.verify_email_id) if email.verify_email_id else None)
            for email in db.session.scalars(own_mails)
        ],
        "events": [
            {"at": event.at, "action": event.action, "ip_address": event.address}
            for event in db.session.scalars(own_events)
        ],
    }


def _mail(user: User, email: OutgoingEmail, link: VerifyEmail | None) -> dict[str, Any]:
    """Return what was asked for; what came of it at an address that is not the user's is for its owner alone to know.

    Else this would tell who has an account, which the mail's template and its spelling of the address do.
    """
    if link is None:
        return {
            "about": email.template,
            "to": email.to_address,
            "promised_at": email.created_at,
            "sent_at": email.sent_at,
        }
    is_own = link.email_key == user.email_key
    return {
        "about": link.purpose,
        "to": user.email if is_own else link.email or link.email_key,
        "promised_at": email.created_at,
        "sent_at": email.sent_at if is_own else None,
    }
