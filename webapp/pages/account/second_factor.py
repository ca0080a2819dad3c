"""A second factor for admins and viewers: setting it up with an app, its recovery codes, and turning it off."""

from __future__ import annotations

import segno
from flask import Blueprint, abort, current_app, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import login_required
from markupsafe import Markup

from webapp.accounts import sessions
from webapp.accounts.second_factor import enrolment, factor
from webapp.accounts.second_factor.factor import CodeWrong
from webapp.delivery import tasks
from webapp.pages.shared import known_browser, rate_limits
from webapp.pages.shared.auth import ProofForm, current, current_password_field, knows_password
from webapp.pages.shared.forms import Form, code_field

blueprint = Blueprint("second_factor", __name__)


class PasswordForm(Form):
    password = current_password_field()


class FirstCodeForm(Form):
    code = code_field(_("Code from your authenticator app"), "")


@blueprint.before_request
@login_required
def let_in() -> None:
    """Allow operators, and former operators who still have a second factor."""
    if not (current().is_operator or current().has_second_factor):
        abort(404)


@blueprint.errorhandler(enrolment.AlreadyOn)
@blueprint.errorhandler(enrolment.AlreadyOff)
def lead_on(_error: Exception) -> ResponseReturnValue:
    """It was turned on or off in another tab, or by a double click."""
    return _back()


@blueprint.get("/account/second-factor")
def show() -> str:
    return _page(Form())


@blueprint.post("/account/second-factor")
def begin() -> ResponseReturnValue:
    form, user = PasswordForm(), current()
    if user.has_second_factor:
        return _back()
    if form.validate() and knows_password(user, form.password):
        enrolment.set_up(user)
        return _back()
    return _page(form), form.status


@blueprint.post("/account/second-factor/confirm")
def confirm() -> ResponseReturnValue:
    form, user = FirstCodeForm(), current()
    if user.has_second_factor or not sessions.is_reauthenticated(user):
        return _back()
    if form.validate():
        try:
            codes, notice = enrolment.confirm(user, form.code.data, user.session_token)
        except CodeWrong:
            form.code.errors = [_("That code is wrong. Is your phone's clock right? Try the next one.")]
        else:
            known_browser.remember(user)
            tasks.deliver_later(notice)
            return _codes(codes, gettext("Your second factor is on."))
    return _page(form), form.status


@blueprint.get("/account/second-factor/<any(codes, off):change>")
def ask(change: str) -> ResponseReturnValue:
    return _ask(change, ProofForm()) if current().has_second_factor else _back()


@blueprint.post("/account/second-factor/<any(codes, off):change>")
def act(change: str) -> ResponseReturnValue:
    form, user = ProofForm(), current()
    if not user.has_second_factor:
        return _back()
    if not (form.validate() and form.proves()):
        return _ask(change, form), form.status
    # A count of its own, as for changed passwords.
    rate_limits.spend("RATELIMIT_ACCOUNT", f"second factor:{user.key}")
    if change == "codes":
        codes, notice = enrolment.renew_recovery_codes(user)
        tasks.deliver_later(notice)
        return _codes(codes, gettext("The old codes no longer work."))
    tasks.deliver_later(enrolment.turn_off(user))
    known_browser.remember(user)
    flash(gettext("Your second factor was turned off."))
    return redirect(url_for("account.show"), 303)


def _page(form: Form) -> str:
    """Show the next step: beginning, scanning and typing the first code, or its state once it is on."""
    user = current()
    on = factor.of(user) if user.has_second_factor else None
    if on is not None:
        return render_template("account/second_factor.html", form=form, left=factor.recovery_codes_left(on))
    # The secret is shown only if the password was given recently.
    begun = enrolment.begun(user) if sessions.is_reauthenticated(user) else None
    codes = factor.totp(begun) if begun else None
    if codes is None or isinstance(form, PasswordForm):
        password_form = form if isinstance(form, PasswordForm) else PasswordForm(formdata=None)
        return render_template("account/second_factor_begin.html", form=password_form)
    uri = codes.provisioning_uri(name=user.username, issuer_name=current_app.config["APP_NAME"])
    return render_template(
        "account/second_factor_set_up.html",
        form=form if isinstance(form, FirstCodeForm) else FirstCodeForm(formdata=None),
        picture=_picture(uri),
        uri=uri,
        secret=codes.secret,
    )


def _picture(uri: str) -> Markup:
    """Return the QR code as SVG, without styles or a size of its own."""
    code = segno.make(uri, error="m", micro=False)
    svg = code.svg_inline(omitsize=True, light="#fff", svgclass=None, lineclass=None)
    return Markup(svg)  # noqa: S704 - nothing of it was typed  # nosec B704


def _codes(codes: list[str], done: str) -> str:
    return render_template("account/recovery_codes.html", codes=codes, done=done)


def _ask(change: str, form: ProofForm) -> str:
    return render_template("account/second_factor_proof.html", form=form, change=change)


def _back() -> ResponseReturnValue:
    return redirect(url_for("second_factor.show"), 303)
