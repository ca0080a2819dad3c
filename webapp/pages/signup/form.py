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
from wtforms import EmailField, HiddenField
from wtforms.validators import DataRequired

from webapp.accounts import passwords, signup, users
from webapp.accounts.identifiers import email_addresses
from webapp.delivery import tasks
from webapp.pages.shared import email_domains, rate_limits, way_on
from webapp.pages.shared.forms import Form, NameFields, is_strong, new_password_field, read_address, strip
from webapp.pages.signup import page_cache, waiting

blueprint = Blueprint("signup", __name__)


class SignupForm(NameFields, Form):
    limit = "RATELIMIT_SIGNUP"

    email = EmailField(
        _("Email address"),
        filters=[strip],
        validators=[DataRequired(_("Please enter your email address."))],
        description=_("We'll send an email there to check that it's yours."),
        render_kw={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"},
    )
    password = new_password_field(_("Password"))
    # Of this page alone, so that a form that is sent twice is one signup.
    nonce = HiddenField()

    address: email_addresses.Address

    def validate_email(self, field: EmailField) -> None:
        self.address = read_address(field)

    def has_strong_password(self) -> bool:
        return is_strong(self.password, self.username.data, self.full_name.data, self.email.data, *self.own.values())


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
        # Before the transaction, which must not stay open for as long as a hash takes.
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


def _idempotency_key(form: SignupForm) -> uuid.UUID | None:
    """Return what two submissions have in common that came from one page, in one browser, with the same content."""
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
    # The password too, though with a key that is kept nowhere: who mends it after going back means another signup.
    content = json.dumps([*parts, form.password.data]).encode()
    return uuid.UUID(bytes=hmac.digest(current_app.config["SECRET_KEY"].encode(), content, "sha256")[:16], version=4)


def _page(form: SignupForm) -> str:
    return render_template("signup.html", form=form, has_signed_up=waiting.held() is not None, domains=email_domains)
