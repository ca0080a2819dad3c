"""Turning a second factor on and off: by its owner, or by an operator for an owner who lost it. Sends notices."""

from __future__ import annotations

import uuid

from webapp import audit
from webapp.accounts import notices, sessions, users
from webapp.accounts.second_factor import factor
from webapp.accounts.second_factor.factor import CodeWrong, SecondFactor
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import kinds


class AlreadyOn(Exception):
    """The account already has a second factor."""


class AlreadyOff(Exception):
    """The account no longer has a second factor."""


def set_up(user: User) -> None:
    """Create a factor, which is off until confirm() gets its first code, and commit. Raises AlreadyOn."""
    _lock_while_off(user)
    factor.forget(user)
    db.session.add(factor.new(user))
    db.session.commit()


def begun(user: User) -> SecondFactor | None:
    """Return the factor that waits for its first code."""
    return None if user.has_second_factor else factor.of(user)


def confirm(user: User, typed: str, session_token: str) -> tuple[list[str], uuid.UUID]:
    """Turn the factor on by its first code, sign all other browsers out, and commit.

    The only session left has then proved both factors. Returns the recovery codes, and the id of the notice. Raises
    CodeWrong or AlreadyOn.
    """
    _lock_while_off(user)
    waiting = factor.of(user, for_update=True)
    if waiting is None or not factor.use_code(waiting, factor.read_digits(typed)):
        db.session.rollback()
        raise CodeWrong
    user.second_factor_at = db_now()
    codes = factor.make_recovery_codes(waiting)
    sessions.revoke_all(user, but=session_token)
    audit.record("second_factor_on", user.id)
    notice = notices.post(user, kinds.SECOND_FACTOR_ON)
    db.session.commit()
    return codes, notice


def renew_recovery_codes(user: User) -> tuple[list[str], uuid.UUID]:
    """Replace the recovery codes, and commit; return them, and the id of the notice. Raises AlreadyOff."""
    codes = factor.make_recovery_codes(_lock_while_on(user))
    audit.record("recovery_codes_made", user.id)
    notice = notices.post(user, kinds.RECOVERY_CODES_MADE)
    db.session.commit()
    return codes, notice


def turn_off(user: User) -> uuid.UUID:
    """Turn the factor off, so that the password alone signs in again, and commit; return the id of the notice.

    Raises AlreadyOff.
    """
    _lock_while_on(user)
    factor.forget(user)
    user.second_factor_at = None
    audit.record("second_factor_off", user.id)
    notice = notices.post(user, kinds.SECOND_FACTOR_OFF)
    db.session.commit()
    return notice


def reset(user: User) -> uuid.UUID | None:
    """Turn off a lost factor, sign out every browser, and commit; return the notice's id, or None if it was off."""
    users.lock_row(user)
    if user.second_factor_at is None:
        db.session.rollback()
        return None
    factor.forget(user)
    user.second_factor_at = None
    sessions.revoke_all(user)
    audit.record("second_factor_reset", user.id)
    notice = notices.post(user, kinds.SECOND_FACTOR_RESET)
    db.session.commit()
    return notice


def _lock_while_off(user: User) -> None:
    users.lock_row(user)
    if user.second_factor_at is not None:
        db.session.rollback()
        raise AlreadyOn


def _lock_while_on(user: User) -> SecondFactor:
    users.lock_row(user)
    on = factor.of(user)
    if user.second_factor_at is None or on is None:
        db.session.rollback()
        raise AlreadyOff
    return on
