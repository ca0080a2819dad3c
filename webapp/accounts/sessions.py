"""Sessions: who is signed in where. They end on the server, whatever a browser keeps."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, Select, String, bindparam, select, update
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp import audit
from webapp.accounts import user_agents
from webapp.accounts.users import User
from webapp.db import clock
from webapp.db.base import NUMBERED_ONCE, Model, db, read_alone
from webapp.db.clock import db_now

# A session ends after the first without use, and after the second in any case.
IDLE_SECONDS = 14 * 86400.0
LONGEST_SECONDS = 90 * 86400.0

# How precisely the last use is recorded: every request would cost a write, and idle time is counted in weeks.
SEEN_SECONDS = 3600.0

# Sessions per user: a page shows them all, and signing in again and again must not make it endless.
MOST = 50

# How long after giving the password it is not asked again.
REAUTH_SECONDS = 600.0


class PasswordChanged(Exception):
    """The password no longer opens a session: it changed, a second factor was turned on, or the account was locked."""


class UserSession(Model):
    """One signed-in browser. Its token is stored as a hash: a copy of the table lets nobody in."""

    __tablename__ = "user_sessions"
    __table_args__ = (Index("ix_user_sessions_user_id", "user_id"), NUMBERED_ONCE)

    id: Mapped[int] = mapped_column(primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    # When the password was last asked again; NULL if not since signing in.
    proved_at: Mapped[datetime | None]
    # Our names for the browser and its system, and the network address last seen; sessions of old releases have none.
    browser: Mapped[str | None] = mapped_column(String(30))
    system: Mapped[str | None] = mapped_column(String(30))
    address: Mapped[str | None] = mapped_column(String(45))

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)


def begin(user: User, *, has_proved_both: bool = False) -> str:
    """Sign the user in, and commit; return the token for the browser.

    Beyond MOST sessions, the least recently used end. `has_proved_both`: the password and the second factor; required
    if the user has one. Raises PasswordChanged.
    """
    # A change of these ends all sessions, and may have happened since the password was checked.
    held = select(User.password_hash, User.second_factor_at).where(User.id == user.id, User.locked_at.is_(None))
    kept = db.session.execute(held.with_for_update(read=True)).first()
    if kept is None or kept.password_hash != user.password_hash or (kept.second_factor_at and not has_proved_both):
        db.session.rollback()
        raise PasswordChanged
    _revoke(UserSession.id.in_(_of(user).with_only_columns(UserSession.id).offset(MOST - 1)))
    token = secrets.token_urlsafe(32)
    db.session.add(
        UserSession(
            token_hash=hashed(token),
            user_id=user.id,
            created_at=db_now(),
            seen_at=db_now(),
            address=audit.client_ip.get(),
            **user_agents.device(),
        )
    )
    audit.record("signed_in", user.id)
    db.session.commit()
    return token


def find_user(token: str) -> User | None:
    """Return the session's user, unless it ended."""
    found = _find(token)
    if found is None:
        return None
    found.user.session_seen_at = found.seen_at
    found.user.session_reauthenticated_at = found.proved_at or found.created_at
    return found.user


def identify(token: str) -> Any:
    """Return the IDENTITY columns of the session's user, unless it ended: takes a third as long as find_user()."""
    return read_alone(IDENTITY, {"token": hashed(token)})


def may_be_touched(seen_at: datetime) -> bool:
    """Return whether touch() may have something to write, by this machine's clock: usually it does not."""
    return seen_at < clock.now() - timedelta(seconds=SEEN_SECONDS)


def is_reauthenticated(user: User) -> bool:
    """Return whether the password was given in this session, or it began, recently."""
    return user.session_reauthenticated_at > clock.now() - timedelta(seconds=REAUTH_SECONDS)


def reauthenticate(token: str) -> None:
    """Record that the password was given in this session, and commit."""
    db.session.execute(
        update(UserSession).where(UserSession.token_hash == hashed(token)).values(proved_at=db_now()),
        execution_options={"synchronize_session": False},
    )
    db.session.commit()


def touch(token: str) -> None:
    """Record that the session is in use, at most once every SEEN_SECONDS. The caller commits."""
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


def revoke_all(user: User, *, but: str = "") -> int:
    """Sign out every browser of this user except the one with that token; return how many. The caller commits."""
    return _revoke(UserSession.user_id == user.id, UserSession.token_hash != hashed(but))


def end_others(user: User, token: str) -> None:
    """Sign out every browser of this user except the one with this token, and commit."""
    if revoke_all(user, but=token):
        audit.record("others_signed_out", user.id)
    db.session.commit()


def end_one(user: User, token_hash: str) -> None:
    """Sign out one browser, if it is this user's, and commit."""
    if _revoke(UserSession.user_id == user.id, UserSession.token_hash == token_hash):
        audit.record("other_signed_out", user.id)
    db.session.commit()


def of(user: User) -> Sequence[UserSession]:
    """Return this user's sessions, the most recently seen first."""
    return db.session.scalars(_of(user).limit(MOST)).all()


def refuse() -> None:
    """Record a wrong name or password, and commit."""
    audit.record("sign_in_failed")
    db.session.commit()


def _find(token: str) -> UserSession | None:
    return db.session.scalar(OF_TOKEN, {"token": hashed(token)})


def _of(user: User) -> Select[UserSession]:
    latest = UserSession.seen_at.desc(), UserSession.id.desc()
    return select(UserSession).where(UserSession.user_id == user.id, *ALIVE).order_by(*latest)


ALIVE: tuple[ColumnElement[bool], ...] = (
    UserSession.revoked_at.is_(None),
    UserSession.seen_at > db_now(-IDLE_SECONDS),
    UserSession.created_at > db_now(-LONGEST_SECONDS),
)
# Built once: every request of a signed-in user runs it, and building it takes as long as running it.
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
    """Return the stored form of a session's token."""
    return hashlib.sha256(token.encode()).hexdigest()
