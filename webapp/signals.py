"""Signals for code of your own when an account changes, sent inside the transaction: see docs/signals.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from blinker import NamedSignal, Namespace
from flask import Flask, current_app
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from webapp.db.base import db
from webapp.db.outages import is_outage

log = structlog.get_logger(__name__)

_signals = Namespace()

# Each is sent with the app, `user_id`, `user`, and the values named beside it.
user_verified = _signals.signal("user-verified")
email_changed = _signals.signal("email-changed")  # former, email
user_renamed = _signals.signal("user-renamed")  # former, username
user_deleted = _signals.signal("user-deleted")

# On SQLite every other writer waits for a receiver, and PostgreSQL ends its transaction after five seconds without a
# statement: warn the operator long before that.
SLOW_SECONDS = 1.0


class ReceiverFailed(Exception):
    """A receiver raised, or broke the transaction that it runs in, which was rolled back."""


def send(signal: NamedSignal, user: Any, **values: str) -> None:
    """Call the receivers in the caller's transaction. Raises ReceiverFailed after rolling it back."""
    if not signal.receivers:
        return
    # So that receivers see the change in the database.
    db.session.flush()
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - Flask's own signals' sender
    for receiver in signal.receivers_for(app):
        name = f"{getattr(receiver, '__module__', '')}.{getattr(receiver, '__qualname__', repr(receiver))}"
        begun = time.monotonic()
        try:
            _call(app, receiver, user, keeps_user=signal is not user_deleted, **values)
        except Exception as error:
            db.session.rollback()
            if is_outage(error):
                raise
            log.exception("receiver_failed", signal=signal.name, receiver=name, advice="what it was told of is undone")
            raise ReceiverFailed(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            seconds = time.monotonic() - begun
            if seconds > SLOW_SECONDS:
                log.warning("receiver_slow", signal=signal.name, receiver=name, seconds=round(seconds, 1))


def _call(app: Flask, receiver: Callable[..., Any], user: Any, *, keeps_user: bool, **values: str) -> None:
    session, user_id = db.session(), user.id
    transaction = session.get_transaction()
    session.info["is_told"] = True
    try:
        app.ensure_sync(receiver)(app, user_id=user_id, user=user, **values)
    finally:
        session.info["is_told"] = False
    if db.session().get_transaction() is not transaction:
        raise RuntimeError("a receiver runs inside our transaction, and must not end it")
    # Otherwise a later commit would fail, and nobody would know whose change caused it.
    session.flush()
    kind = type(user)
    if keeps_user and session.scalar(select(kind.id).where(kind.id == user_id)) is None:
        raise RuntimeError("a receiver must not delete the user that it is told of: raise to undo what happened")


@event.listens_for(db.session, "before_commit")
def _refuse(session: Session) -> None:
    if session.info.get("is_told") and not session.in_nested_transaction():
        raise RuntimeError("a receiver runs inside our transaction, and must not commit it")
