"""Who is signed in where: begun at sign-in, ended on the server, whatever a browser keeps."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, String, bindparam, select, update
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp import audit
from webapp.accounts import user_agents
from webapp.accounts.users import User
from webapp.db import clock
from webapp.db.base import NUMBERED_ONCE, Model, db, read_alone
from webapp.db.clock import db_now

# A session ends when it was not used for the first, and at the latest after the second.
IDLE_SECONDS = 14 * 86400.0
LONGEST_SECONDS = 90 * 86400.0

# Writing down each request would cost a write each; idle time is counted in weeks.
SEEN_SECONDS = 3600.0

# For so long whoever gave the password may do what takes it.
REAUTH_SECONDS = 600.0


class PasswordChanged(Exception):
    """The password that opened the session is the account's no more, or the account was locked."""


class UserSession(Model):
    """One browser that is signed in. Its token is kept as a hash: a copy of the table opens nothing."""

    __tablename__ = "user_sessions"
    __table_args__ = (Index("ix_user_sessions_user_id", "user_id"), NUMBERED_ONCE)

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    # When its password was asked again; until then signing in counts.
    proved_at: Mapped[datetime | None]
    # As the browser called itself, and the network address that it was seen at last; of old ones neither is known.
    browser: Mapped[str | None] = mapped_column(String(30))
    system: Mapped[str | None] = mapped_column(String(30))
    address: Mapped[str | None] = mapped_column(String(45))

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)


def begin(user: User) -> str:
    """Sign the user in, and commit; return the token that its browser keeps. Raises PasswordChanged."""
    # Both end all sessions, and this one might begin between that and the check of the password.
    held = select(User.password_hash).where(User.id == user.id, User.locked_at.is_(None))
    kept = db.session.scalar(held.with_for_update(read=True))
    if kept != user.password_hash:
        db.session.rollback()
        raise PasswordChanged
    token = secrets.token_urlsafe(32)
    db.session.add(
        UserSession(
            token_hash=hashed(token),
            user_id=user.id,
            created_at=db_now(),
            seen_at=db_now(),
            browser=user_agents.browser(audit.client_agent.get()),
            system=user_agents.system(audit.client_agent.get()),
            address=audit.client_ip.get(),
        )
    )
    audit.record("signed_in", user.id)
    db.session.commit()
    return token


def find_user(token: str) -> User | None:
    """Return whose session it is, if it did not end."""
    found = _find(token)
    if found is None:
        return None
    found.user.session_seen_at = found.seen_at
    found.user.session_reauthenticated_at = found.proved_at or found.created_at
    return found.user


def identify(token: str) -> Any:
    """Return what IDENTITY says of whose session it is, if it did not end: a third of what find_user() takes."""
    return read_alone(IDENTITY, {"token": hashed(token)})


def may_be_touched(seen_at: datetime) -> bool:
    """Return whether touch() may have something to write, asking this machine's clock: most often it has not."""
    return seen_at < clock.now() - timedelta(seconds=SEEN_SECONDS)


def is_reauthenticated(user: User) -> bool:
    """Return whether whoever uses the session gave the password, or signed in, lately."""
    return user.session_reauthenticated_at > clock.now() - timedelta(seconds=REAUTH_SECONDS)


def reauthenticate(token: str) -> None:
    """Note that whoever uses the session gave the password just now, and commit."""
    db.session.execute(
        update(UserSession).where(UserSession.token_hash == hashed(token)).values(proved_at=db_now()),
        execution_options={"synchronize_session": False},
    )
    db.session.commit()


def touch(token: str) -> None:
    """Note that the session is used, once in a while. The caller commits."""
    db.session.execute(
        update(UserSession)
        .where(UserSession.token_hash == hashed(token), UserSession.seen_at < db_now(-SEEN_SECONDS))
        .values(seen_at=db_now(), address=audit.client_ip.get())
    )


def end(token: str) -> None:
    """Sign out this browser, and commit."""
    if found := _find(token):
        audit.record("signed_out", found.user_id)
    _revoke(UserSession.token_hash == hashed(token))
    db.session.commit()


def end_all(user: User) -> None:
    """Sign out every browser of this user, and commit."""
    revoke_all(user)
    db.session.commit()


def revoke_all(user: User) -> int:
    """Sign out every browser of this user, and return how many there were. The caller commits."""
    return _revoke(UserSession.user_id == user.id)


def end_others(user: User, token: str) -> None:
    """Sign out every browser of this user but the one that has this token, and commit."""
    if _revoke(UserSession.user_id == user.id, UserSession.token_hash != hashed(token)):
        audit.record("others_signed_out", user.id)
    db.session.commit()


def end_one(user: User, token_hash: str) -> None:
    """Sign out one browser of this user, and commit; nobody else's."""
    if _revoke(UserSession.user_id == user.id, UserSession.token_hash == token_hash):
        audit.record("other_signed_out", user.id)
    db.session.commit()


def of(user: User) -> Sequence[UserSession]:
    """Return where this user is signed in, the last seen first."""
    query = select(UserSession).where(UserSession.user_id == user.id, *ALIVE)
    return db.session.scalars(query.order_by(UserSession.seen_at.desc(), UserSession.id.desc())).all()


def refuse() -> None:
    """Note that somebody gave a wrong name or password, and commit."""
    audit.record("sign_in_failed")
    db.session.commit()


def _find(token: str) -> UserSession | None:
    return db.session.scalar(OF_TOKEN, {"token": hashed(token)})


ALIVE: tuple[ColumnElement[bool], ...] = (
    UserSession.revoked_at.is_(None),
    UserSession.seen_at > db_now(-IDLE_SECONDS),
    UserSession.created_at > db_now(-LONGEST_SECONDS),
)
# Every request of who is signed in asks it: making it anew would take as long as asking.
OF_TOKEN = select(UserSession).where(UserSession.token_hash == bindparam("token"), *ALIVE)
IDENTITY = OF_TOKEN.join(User).with_only_columns(
    User.id, User.username, User.full_name, User.email, User.email_verified_at, UserSession.seen_at
)


def _revoke(*which: ColumnElement[bool]) -> int:
    """End these sessions, and return how many there were. The caller commits."""
    ended = db.session.scalars(
        update(UserSession)
        .where(*which, UserSession.revoked_at.is_(None))
        .values(revoked_at=db_now())
        .returning(UserSession.id),
        execution_options={"synchronize_session": False},
    )
    return len(ended.all())


def hashed(token: str) -> str:
    """Return what is kept of a session's token."""
    return hashlib.sha256(token.encode()).hexdigest()
