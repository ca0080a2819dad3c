"""Signing in and out."""

from __future__ import annotations

import uuid

from flask import Blueprint, abort, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import current_user
from wtforms import StringField
from wtforms.validators import DataRequired, Length

from webapp.accounts import authentication, sessions, signup, verification
from webapp.accounts.identifiers import email_addresses
from webapp.pages.shared import known_browser, rate_limits, way_on
from webapp.pages.shared.auth import current_password_field, forget, say_goodbye, sign_in
from webapp.pages.shared.forms import Form, strip
from webapp.pages.signup import waiting

blueprint = Blueprint("login", __name__)


class LoginForm(Form):
    identifier = StringField(
        _("Username or email address"),
        filters=[strip],
        validators=[
            DataRequired(_("Please enter your username or email address.")),
            Length(max=email_addresses.EMAIL_MAX, message=_("Please use at most %(max)d characters.")),
        ],
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )
    password = current_password_field()


@blueprint.get("/login")
def show() -> ResponseReturnValue:
    if current_user.is_authenticated:
        return way_on.follow(way_on.asked())
    return render_template("login.html", form=LoginForm())


@blueprint.get("/login/<uuid:signup_id>")
def lead_to(signup_id: uuid.UUID) -> ResponseReturnValue:
    """The link in the email to people who signed up although they have an account: sign in, then go on.

    The place itself is not in the email: anybody may have typed it.
    """
    user = signup.find(signup_id)
    return redirect(f"{url_for('login.show')}{way_on.query(verification.leads_to(user) if user else None)}", 303)


@blueprint.post("/login")
def submit() -> ResponseReturnValue:
    form = LoginForm()
    if form.validate():
        typed = form.identifier.data
        with rate_limits.guessing(email_addresses.identifier_key(typed), known_by=known_browser.named(typed)) as guess:
            user = authentication.authenticate(typed, form.password.data, waiting.pending_user())
            guess.is_right = user is not None
            # Anybody can sign up with any address and their own password: that must not reset the count of guesses.
            guess.ends_count = user is not None and user.is_email_verified
        if user is not None and user.is_email_verified:
            # If a second factor is on, no session begins before its code.
            if not user.has_second_factor:
                rate_limits.spend("RATELIMIT_ACCOUNT", user.key)
            return sign_in(user, way_on.asked())
        if user is not None:
            waiting.remember(signup.id_of(user, way_on.asked()))
            return redirect(url_for("waiting.show"), 303)
        sessions.refuse()
        form.password.errors = [_("That username, email address, or password is wrong. Please try again.")]
    return render_template("login.html", form=form), form.status


@blueprint.get("/logout")
def ask_to_sign_out() -> ResponseReturnValue:
    """The page for other apps to link to: only our own forms have the token that signing out takes."""
    if not current_user.is_authenticated:
        return redirect(url_for("login.show"), 303)
    return render_template("logout.html", form=Form())


@blueprint.post("/logout")
def sign_out() -> ResponseReturnValue:
    form = Form()
    if session and not form.validate():
        if current_user.is_authenticated:
            return render_template("logout.html", form=form), form.status
        abort(400)
    forget()
    return say_goodbye(gettext("You're signed out."))
