"""The signup form."""

from __future__ import annotations

import hmac
import json
import secrets
import uuid

from flask import Blueprint, current_app, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import get_locale
from flask_babel import lazy_gettext as _
from wtforms import HiddenField

from webapp.accounts import passwords, signup, users
from webapp.delivery import tasks
from webapp.pages.shared import email_domains, rate_limits, way_on
from webapp.pages.shared.forms import Form, NameFields, WithNewAddress, email_field
from webapp.pages.shared.new_password import is_strong, measure, new_password_field
from webapp.pages.signup import page_cache, waiting

blueprint = Blueprint("signup", __name__)


class SignupForm(NameFields, WithNewAddress, Form):
    limit = "RATELIMIT_SIGNUP"

    email = email_field(hint=_("We'll send an email there to check that it's yours."))
    password = new_password_field(_("Password"))
    # Unique to this page, so that a form that is sent twice is one signup.
    nonce = HiddenField()

    def has_strong_password(self) -> bool:
        return is_strong(self.password, self.words())

    def words(self) -> tuple[str, ...]:
        return self.username.data, self.full_name.data, self.email.data, *self.own.values()


@blueprint.get("/signup")
def show() -> str:
    nonce = secrets.token_urlsafe(16)
    return _blank_page(nonce) if waiting.held() else page_cache.fill(_blank_page, nonce)


def _blank_page(nonce: str) -> str:
    return _page(SignupForm(nonce=nonce))


@blueprint.post("/signup")
def submit() -> ResponseReturnValue:
    form = SignupForm()
    if form.validate():
        rate_limits.spend("RATELIMIT_SIGNUP", rate_limits.network())
        # Before the transaction, which must not stay open while a password is hashed.
        password_hash = passwords.hash(form.password.data)
        try:
            signup_id, email_id = signup.sign_up(
                username=form.name,
                full_name=form.full_name.data,
                address=form.address,
                password_hash=password_hash,
                locale=str(get_locale()),
                verification_id=_idempotency_key(form),
                rank=rate_limits.spent("RATELIMIT_SIGNUP", rate_limits.network()),
                leads_to=way_on.asked(),
                own=form.own,
            )
        except users.UsernameTaken:
            form.username.errors = [_("That username is taken. Please choose another.")]
        else:
            if email_id is not None:
                tasks.deliver_later(email_id, delay=signup.delay())
            waiting.remember(signup_id)
            return redirect(url_for("waiting.show"), 303)
    return _page(form), form.status


@blueprint.post("/signup/strength")
def strength() -> ResponseReturnValue:
    form = SignupForm()
    return measure(form, form.password, form.words)


def _idempotency_key(form: SignupForm) -> uuid.UUID | None:
    """Return an id that submissions share if they come from one page, in one browser, with the same content."""
    if not form.nonce.data:
        return None
    parts = [
        session["csrf_token"],
        form.nonce.data,
        form.name,
        form.full_name.data,
        form.address.key,
        *form.own.values(),
    ]
    # The password too, hashed with a key that is not in the database: correcting it after going back is a new signup.
    content = json.dumps([*parts, form.password.data]).encode()
    return uuid.UUID(bytes=hmac.digest(current_app.config["SECRET_KEY"].encode(), content, "sha256")[:16], version=4)


def _page(form: SignupForm) -> str:
    return render_template("signup.html", form=form, has_signed_up=waiting.held() is not None, domains=email_domains)
