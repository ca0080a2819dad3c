"""An account in its owner's hands: renamed, exported, deleted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from webapp import audit, signals
from webapp.accounts import links, notices, users
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
    """Change the names and the fields of own/fields.py, and commit; return the notice's id if the username changed.

    Raises UsernameTaken or ReceiverFailed.
    """
    users.lock(user.email_key, username)
    users.lock_row(user)
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
    """Delete the account, and commit; return the id of the notice to its address.

    `notice`: its template; None for an address that was never proved. Waiting emails are canceled, links and sessions
    deleted; audit events stay, without the user. Raises ReceiverFailed.
    """
    # Lock the emails first and then the user, like a worker that records an outcome: otherwise the two could deadlock.
    db.session.scalars(select(OutgoingEmail.id).where(OutgoingEmail.user_id == user.id).with_for_update()).all()
    users.lock_row(user)
    transitions.cancel(OutgoingEmail.user_id == user.id, reason="its user was deleted")
    audit.record("account_deleted", detail=f"user {user.id}")
    email_id = notices.post(user, notice) if notice else None
    # Before the row is deleted: rows of receivers may refer to it. Receivers never heard of an unverified user.
    if user.is_email_verified:
        signals.send(signals.user_deleted, user)
    links.delete_of([user.id])
    db.session.execute(delete(User).where(User.id == user.id), execution_options={"synchronize_session": False})
    db.session.commit()
    return email_id


def export(user: User) -> dict[str, Any]:
    """Return everything stored about this user, except hashes and links, which prove who it is."""
    # Plain rows: an active user has thousands, and ORM objects take ten times as long.
    own_links = select(VerifyEmail.id, VerifyEmail.purpose, VerifyEmail.email, VerifyEmail.email_key).where(
        VerifyEmail.user_id == user.id
    )
    by_id = {link.id: link for link in db.session.execute(own_links)}
    own_mails = select(
        OutgoingEmail.template,
        OutgoingEmail.to_address,
        OutgoingEmail.created_at,
        OutgoingEmail.sent_at,
        OutgoingEmail.verify_email_id,
    )
    own_mails = own_mails.where(OutgoingEmail.user_id == user.id).order_by(OutgoingEmail.created_at)
    own_sessions = select(
        UserSession.browser,
        UserSession.system,
        UserSession.address,
        UserSession.created_at,
        UserSession.seen_at,
        UserSession.revoked_at,
    )
    own_sessions = own_sessions.where(UserSession.user_id == user.id).order_by(UserSession.id)
    own_events = select(AuditEvent.at, AuditEvent.action, AuditEvent.address, AuditEvent.actor)
    own_events = own_events.where(AuditEvent.user_id == user.id).order_by(AuditEvent.id)
    return {
        "account": {
            "username": user.username,
            "full_name": user.full_name,
            **{column.name: getattr(user, column.name) for column in users.OWN_FIELDS},
            "email": user.email,
            "email_verified_at": user.email_verified_at,
            "locked_at": user.locked_at,
            "role": user.role,
            "second_factor_at": user.second_factor_at,
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
            for one in db.session.execute(own_sessions)
        ],
        "mails": [
            _mail(user, email, by_id.get(email.verify_email_id) if email.verify_email_id else None)
            for email in db.session.execute(own_mails)
        ],
        "events": [
            # An operator's address is not the user's to know.
            {"at": event.at, "action": event.action, "ip_address": None if event.actor else event.address}
            for event in db.session.execute(own_events)
        ],
    }


def _mail(user: User, email: Any, link: Any) -> dict[str, Any]:
    """Return what the user asked for; the outcome is left out at an address that is not the user's.

    The email's template, its spelling of the address and its outcome would reveal whether that address has an account.
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
