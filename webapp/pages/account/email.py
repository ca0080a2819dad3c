"""Another address for the account: asked for with the password, and confirmed by link, or here by code."""

from __future__ import annotations

import uuid

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import login_required
from wtforms import EmailField
from wtforms.validators import DataRequired, ValidationError

from webapp.accounts import codes, email_change
from webapp.accounts.identifiers import email_addresses
from webapp.delivery import tasks
from webapp.outbox import outgoing_email
from webapp.pages.shared import mail_status, rate_limits, way_on
from webapp.pages.shared.auth import current, current_password_field, knows_password
from webapp.pages.shared.forms import Form, code_field, read_address, strip

blueprint = Blueprint("address", __name__)


class AddressForm(Form):
    limit = "RATELIMIT_SIGNUP"

    email = EmailField(
        _("New address"),
        filters=[strip],
        validators=[DataRequired(_("Please enter your email address."))],
        description=_("We'll send an email there to check that it's yours."),
        render_kw={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"},
    )
    password = current_password_field()

    address: email_addresses.Address

    def validate_email(self, field: EmailField) -> None:
        self.address = read_address(field)
        if self.address.key == current().email_key:
            raise ValidationError(_("This is already your address."))


class CodeForm(Form):
    code = code_field()


@blueprint.get("/account/email")
@login_required
def show() -> str:
    return _page(Form())


@blueprint.post("/account/email")
@login_required
def ask() -> ResponseReturnValue:
    form = AddressForm()
    if form.validate():
        user = current()
        if knows_password(user, form.password):
            # Each address that one can have mailed counts, however it is asked for.
            rate_limits.spend("RATELIMIT_SIGNUP", rate_limits.network())
            _hint(email_change.ask(user, form.address, user.session_token, way_on.asked()))
            return redirect(url_for("address.show"), 303)
    return _page(form), form.status


@blueprint.post("/account/email/code")
@login_required
def confirm_by_code() -> ResponseReturnValue:
    form, user = CodeForm(), current()
    if form.validate():
        wish = email_change.awaited(user)
        try:
            email = email_change.confirm_by_code(user, form.code.data, user.session_token)
        except codes.CodeWrong:
            if email_change.awaited(user) is None:
                # Confirmed meanwhile by the link, or called off: the page says what is so now.
                return redirect(url_for("address.show"), 303)
            form.code.errors = [_("That code is wrong or has expired. Check it, or send a new one.")]
        except codes.TooManyTries:
            form.code.errors = [_("Too many wrong codes. Use the link in the email instead.")]
        else:
            return changed(email, wish.leads_to if wish else None)
    return _page(form), form.status


@blueprint.post("/account/email/resend")
@login_required
def resend() -> ResponseReturnValue:
    form = Form()
    if not form.validate():
        return _page(form), form.status
    rate_limits.spend("RATELIMIT_RESEND", current().key)
    _hint(email_change.resend(current()))
    return redirect(url_for("address.show"), 303)


@blueprint.post("/account/email/cancel")
@login_required
def call_off() -> ResponseReturnValue:
    form = Form()
    if not form.validate():
        return _page(form), form.status
    email_change.call_off(current())
    return redirect(url_for("account.show"), 303)


def changed(email_id: uuid.UUID | None, leads_to: str | None) -> ResponseReturnValue:
    """Lead on whoever confirmed, and have the former address told."""
    _hint(email_id)
    flash(gettext("Your address was changed. We've told your old address, too."))
    return way_on.follow(leads_to or url_for("account.show"))


def _hint(email_id: uuid.UUID | None) -> None:
    if email_id is not None:
        tasks.deliver_later(email_id)


def _page(form: Form) -> str:
    """Show the page, with the one form that was sent and is wrong."""
    user = current()
    wish = email_change.awaited(user)
    return render_template(
        "account/email.html",
        form=form,
        address_form=form if isinstance(form, AddressForm) else AddressForm(formdata=None),
        code_form=form if isinstance(form, CodeForm) else CodeForm(formdata=None),
        wish=wish,
        types_code=wish is not None and email_change.is_asked_by(wish, user.session_token),
        progress=mail_status.of(outgoing_email.latest_of(wish.id)) if wish else None,
    )
