"""Signing a browser in and out, with Flask-Login."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from datetime import datetime
from typing import Any

from flask import Flask, flash, g, redirect, request, session, url_for
from flask_babel import lazy_gettext as _
from flask_login import current_user, login_user
from werkzeug import Response
from wtforms import PasswordField, StringField
from wtforms.validators import InputRequired, Length, ValidationError

from webapp import extensions
from webapp.accounts import authentication, passwords, sessions, tokens, users
from webapp.accounts.second_factor import factor
from webapp.accounts.second_factor.factor import CodeWrong, TooManyTries
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.delivery import tasks
from webapp.pages.shared import known_browser, language, rate_limits, way_on
from webapp.pages.shared.errors import DATABASE_DOWN
from webapp.pages.shared.forms import CODE_MAX, Form, code_field, strip

# How long after the password the code may be given.
CODE_SECONDS = 600.0
USE = "password given"


def init_app(app: Flask) -> None:
    extensions.login.unauthorized_handler(_ask_to_sign_in)
    extensions.login.user_loader(load)
    app.teardown_request(_write_seen)
    for ended in (users.UserGone, sessions.PasswordChanged):
        app.register_error_handler(ended, lambda _error: _ask_to_sign_in())


def _ask_to_sign_in() -> Response:
    return redirect(f"{url_for('login.show')}{way_on.query(way_on.here())}", 303)


def load(token: str) -> User | None:
    user = sessions.find_user(token)
    if user is not None:
        user.session_token = token
        note_seen(token, user.session_seen_at)
    return user


def note_seen(token: str, seen_at: datetime) -> None:
    """Have the session's use recorded once the page is done, unless another site made the request.

    Its links would keep a session alive that nobody uses.
    """
    if sessions.may_be_touched(seen_at) and request.headers.get("Sec-Fetch-Site") != "cross-site":
        g.seen = token


def _write_seen(_error: BaseException | None) -> None:
    """Record the session's use, once in a while: the only thing that viewing a page writes."""
    if token := g.pop("seen", None):
        # Not together with what the page left uncommitted, and not in its transaction: on SQLite, one that began by
        # reading may not write.
        db.session.remove()
        with suppress(*DATABASE_DOWN):
            sessions.touch(token)
            db.session.commit()


def sign_in(user: User, leads_to: str | None) -> Response:
    """Sign in the user, whose password was given, and redirect; if a second factor is on, ask for it first.

    Until then, the browser gets nothing but access to that page.
    """
    forget()
    if not user.has_second_factor:
        begin_session(user)
        return way_on.follow(leads_to)
    at = int(time.time())
    session["password_given"] = {"user": user.key, "at": at, "seal": tokens.seal(USE, _said(user, at))}
    return redirect(f"{url_for('login_code.show')}{way_on.query(leads_to)}", 303)


def half_signed_in() -> User | None:
    """Return the user whose password was recently given in this browser, and whose code is now due.

    None if the password has changed since, or if the account was deleted and its id given out again.
    """
    given = session.get("password_given")
    if not given or time.time() - given["at"] >= CODE_SECONDS:
        return None
    user = db.session.get(User, int(given["user"].partition(":")[0]))
    if user is None or user.key != given["user"] or not user.has_second_factor:
        return None
    return user if tokens.is_sealed(USE, _said(user, given["at"]), given["seal"]) else None


def _said(user: User, at: int) -> str:
    return f"{user.key}:{at}:{user.password_hash}"


def begin_session(user: User, *, has_proved_both: bool = False) -> None:
    """Begin a new session: nothing from the browser's former one becomes the account's. Raises PasswordChanged."""
    forget()
    language.keep(user)
    user.session_token = sessions.begin(user, has_proved_both=has_proved_both)
    login_user(user)
    known_browser.remember(user)


def forget() -> None:
    """End the browser's session here and on the server, if it has one."""
    if current_user.is_authenticated:
        sessions.end(current_user.session_token)
    session.clear()


def say_goodbye(text: str) -> Response:
    """Redirect to the sign-in page, which shows the text.

    Behind a proxy the start page may be another app's, where people would be asked to sign in first.
    """
    flash(text)
    return redirect(url_for("login.show"), 303)


def current() -> User:
    """Return the signed-in user, on a page that requires one."""
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
    """Return whether the field has the account's password; otherwise add an error to the field.

    Wrong ones count for this session, or for this link. Raises TooManyGuesses. Leaves no transaction open.
    """
    # No transaction stays open while a password is hashed.
    db.session.commit()
    known_by = f"link:{link}" if link else f"session:{user.session_token}"
    with rate_limits.guessing(user.email_key, known_by=known_by) as guess:
        guess.is_right = authentication.is_password(user, field.data or "")
    if guess.is_right:
        # With a second factor, the password alone is not enough to reauthenticate.
        if link is None and not user.has_second_factor:
            sessions.reauthenticate(user.session_token)
        return True
    sessions.refuse()
    field.errors = [_("That password is wrong. Please try again.")]
    return False


class CodeFields:
    """The second factor: a code from the app, or a recovery code instead."""

    code = code_field(_("Code from your authenticator app"), "", is_optional=True)
    recovery_code = StringField(
        _("Recovery code"),
        filters=[strip],
        validators=[Length(max=CODE_MAX, message=_("This is too long."))],
        description=_("One of the ten you were given when you set this up. Each works once."),
        render_kw={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"},
    )

    @property
    def typed(self) -> str:
        return str(self.code.data or self.recovery_code.data or "")

    def validate_code(self, field: StringField) -> None:
        if not field.data and not self.recovery_code.data:
            raise ValidationError(_("Please enter the six digits."))

    def refuse(self, error: CodeWrong | TooManyTries) -> None:
        """Add the error to the field that was filled in."""
        if isinstance(error, TooManyTries):
            self.code.errors = [_("Too many wrong codes. Use a recovery code, or try again tomorrow.")]
        elif self.code.data:
            self.code.errors = [_("That code is wrong or was used already. Wait for the next one and try again.")]
        else:
            self.recovery_code.errors = [_("That recovery code is wrong or was used already.")]
        # A refused code never works later, and while it is filled in, a recovery code is ignored.
        self.code.data = ""


class ProofForm(CodeFields, Form):
    """The password and, if a second factor is on, a code: somebody who has only one of them can change nothing."""

    password = current_password_field()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if current().has_second_factor:
            # Problems are listed in the order of the fields on the page, where these come last.
            for name in ("code", "recovery_code"):
                self._fields[name] = self._fields.pop(name)
        else:
            del self.code, self.recovery_code

    def proves(self) -> bool:
        """Return whether what was entered is right, and use up the code; else put an error at the field.

        Wrong entries count for this session. Ends the transaction. Raises TooManyGuesses or PasswordChanged.
        """
        user = current()
        if "password" in self and not knows_password(user, self.password):
            return False
        return "code" not in self or self._has_right_code(user)

    def _has_right_code(self, user: User) -> bool:
        try:
            accepted = factor.check(user, self.typed, known_by=of_session(user))
        except (CodeWrong, TooManyTries) as error:
            self.refuse(error)
            return False
        sessions.reauthenticate(user.session_token)
        if accepted.notice is not None:
            tasks.deliver_later(accepted.notice)
        return True


class AgainForm(ProofForm):
    """The code if a second factor is on, else the password; no field at all if the last proof is recent.

    A page that was opened while it was recent sends none: then these fields are asked for, and nothing is wrong yet.
    """

    is_asked_again = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if sessions.is_reauthenticated(current()):
            del self.password, self.code, self.recovery_code
        elif current().has_second_factor:
            del self.password

    def validate(self, extra_validators: object = None) -> bool:
        is_valid = super().validate(extra_validators)
        if not (is_valid or self.is_stale or self._fields.keys() & request.form.keys() - {"csrf_token"}):
            self.is_asked_again = True
            for field in self:
                field.errors = ()
        return is_valid

    @property
    def status(self) -> int:
        return 403 if self.is_asked_again else super().status


def of_session(user: User) -> str:
    """Return the name under which this session's wrong codes are counted."""
    return f"session:{sessions.hashed(user.session_token)}"
