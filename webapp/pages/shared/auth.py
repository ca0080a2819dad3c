"""Signing a browser in and out: Flask-Login's part of it, and ours."""

from __future__ import annotations

import uuid
from contextlib import suppress
from datetime import datetime

from flask import Flask, abort, g, redirect, request, session, url_for
from flask_babel import lazy_gettext as _
from flask_login import current_user, login_user
from werkzeug import Response
from wtforms import PasswordField
from wtforms.validators import InputRequired, Length

from webapp import extensions
from webapp.accounts import authentication, passwords, sessions, users
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.pages.shared import known_browser, language, rate_limits, way_on
from webapp.pages.shared.errors import DATABASE_DOWN


def init_app(app: Flask) -> None:
    extensions.login.unauthorized_handler(_ask_to_sign_in)
    extensions.login.user_loader(load)
    app.teardown_request(_write_seen)
    app.register_error_handler(users.UserGone, lambda _error: _ask_to_sign_in())


def _ask_to_sign_in() -> Response:
    return redirect(f"{url_for('login.show')}{way_on.query(way_on.here())}", 303)


def load(token: str) -> User | None:
    user = sessions.find_user(token)
    if user is not None:
        user.session_token = token
        note_seen(token, user.session_seen_at)
    return user


def note_seen(token: str, seen_at: datetime) -> None:
    """Have it written down, once the page is done, that the session is used; not at the word of another site.

    Its links would keep a session alive that nobody uses.
    """
    if sessions.may_be_touched(seen_at) and request.headers.get("Sec-Fetch-Site") != "cross-site":
        g.seen = token


def _write_seen(_error: BaseException | None) -> None:
    """Write down that the session is used, once in a while: the one thing that a look at a page writes."""
    if token := g.pop("seen", None):
        # Neither with what the page left undone, nor in its transaction: on SQLite one that began by reading may not
        # write.
        db.session.remove()
        with suppress(*DATABASE_DOWN):
            sessions.touch(token)
            db.session.commit()


def sign_in(user: User) -> None:
    """Begin a new session: what this browser held before must not become the account's."""
    forget()
    language.keep(user)
    try:
        user.session_token = sessions.begin(user)
    except sessions.PasswordChanged:
        abort(_ask_to_sign_in())
    login_user(user)
    known_browser.remember(user)


def forget() -> None:
    """End the browser's session here and on the server, if it has one."""
    if current_user.is_authenticated:
        sessions.end(current_user.session_token)
    session.clear()


def current() -> User:
    """Return who is signed in, on a page that asks for it."""
    user: User = current_user._get_current_object()  # noqa: SLF001 - Werkzeug's own way to what a proxy stands for
    return user


def current_password_field(label: str = _("Password")) -> PasswordField:
    return PasswordField(
        label,
        validators=[
            InputRequired(_("Please enter your password.")),
            Length(max=passwords.MAX_LENGTH, message=_("Please use at most %(max)d characters.")),
        ],
        render_kw={"autocomplete": "current-password"},
    )


def knows_password(user: User, field: PasswordField, *, link: uuid.UUID | None = None) -> bool:
    """Return whether the person knows the account's password; else say so at the field.

    Failures of this session count, or of who has this link. Raises TooManyGuesses. No transaction is open after it.
    """
    # None stays open while a password is hashed.
    db.session.commit()
    known_by = f"link:{link}" if link else f"session:{user.session_token}"
    with rate_limits.guessing(user.email_key, known_by=known_by) as guess:
        guess.is_right = authentication.is_password(user, field.data or "")
    if guess.is_right:
        if link is None:
            sessions.reauthenticate(user.session_token)
        return True
    sessions.refuse()
    field.errors = [_("That password is wrong. Please try again.")]
    return False
