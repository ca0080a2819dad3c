"""Changing the account's address: requested with the password, and confirmed by link, or here by code."""

from __future__ import annotations

import uuid
from typing import Any

from flask import Blueprint, flash, make_response, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import current_user, login_required
from wtforms import EmailField
from wtforms.validators import ValidationError

from webapp.accounts import codes, email_change
from webapp.accounts.links import VerifyEmail
from webapp.delivery import tasks
from webapp.outbox import outgoing_email
from webapp.pages.shared import email_domains, mail_status, rate_limits, way_on
from webapp.pages.shared.auth import ProofForm, current, current_password_field
from webapp.pages.shared.forms import Form, WithNewAddress, code_field, email_field

blueprint = Blueprint("address", __name__)


class AddressForm(WithNewAddress, ProofForm):
    limit = "RATELIMIT_SIGNUP"

    email = email_field(_("New address"), _("We'll send an email there to check that it's yours."))
    # After it in the list of problems.
    password = current_password_field()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "code" in self:
            # The page may also have a field for the code from an email.
            self.code.id = "app_code"

    def validate_email(self, field: EmailField) -> None:
        super().validate_email(field)
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
        if form.proves():
            # Every address that a person can make us send to counts, whichever form it comes from.
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
                # Confirmed by link in the meantime, or called off: the page shows the new state.
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


def changed(email_id: uuid.UUID, leads_to: str | None) -> ResponseReturnValue:
    """Redirect the person who confirmed, and wake a worker for the notice to the former address."""
    tasks.deliver_later(email_id)
    flash(gettext("Your address was changed. We've told your old address, too."))
    return way_on.follow(leads_to or url_for("account.show"))


def _hint(email_id: uuid.UUID | None) -> None:
    if email_id is not None:
        tasks.deliver_later(email_id)


@blueprint.get("/account/email/progress")
def progress() -> ResponseReturnValue:
    """Return the part of the page that changes, for the script that polls it."""
    wish = email_change.awaited(current()) if current_user.is_authenticated else None
    if wish is None:
        # Confirmed, called off or signed out elsewhere: the page says which.
        response = make_response("")
        response.headers["HX-Redirect"] = url_for("address.show")
        return response
    return render_template("progress.html", form=Form(), **_shown(wish))


def _page(form: Form) -> str:
    """Show the page, with the form that was sent and has errors."""
    wish = email_change.awaited(current())
    return render_template(
        "account/email.html",
        form=form,
        address_form=form if isinstance(form, AddressForm) else AddressForm(formdata=None),
        code_form=form if isinstance(form, CodeForm) else CodeForm(formdata=None),
        wish=wish,
        types_code=wish is not None and _types_code(wish),
        **(_shown(wish) if wish else {}),
    )


def _types_code(wish: VerifyEmail) -> bool:
    return email_change.is_asked_by(wish, current().session_token)


def _shown(wish: VerifyEmail) -> dict[str, object]:
    address = wish.email or ""
    return {
        "address": address,
        "progress": mail_status.of(outgoing_email.latest_of(wish.id)),
        "begun": gettext("You asked to change your address."),
        "to_do": gettext("Click the button in the email, or enter the code below.")
        if _types_code(wish)
        else gettext("Click the button in the email, or enter its code in the browser where you asked for it."),
        "done": gettext("We switch to your new address."),
        "here": url_for("address.show"),
        "moves_at": url_for("address.progress"),
        "resends_at": url_for("address.resend"),
        "suggestion": None,
        "webmail": email_domains.webmail(address),
        "domain": address.rpartition("@")[2],
    }
