"""Changing the account's password, with the current one."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import login_required

from webapp.accounts import password_change, passwords
from webapp.delivery import tasks
from webapp.pages.shared import rate_limits
from webapp.pages.shared.auth import ProofForm, begin_session, current, current_password_field
from webapp.pages.shared.new_password import is_strong, measure, new_password_field

blueprint = Blueprint("password", __name__)


class PasswordForm(ProofForm):
    password = current_password_field(_("Current password"))
    new_password = new_password_field(_("New password"))

    def has_strong_password(self) -> bool:
        return is_strong(self.new_password, _words())


@blueprint.get("/account/password")
@login_required
def show() -> str:
    return _page(PasswordForm())


@blueprint.post("/account/password")
@login_required
def submit() -> ResponseReturnValue:
    form, user = PasswordForm(), current()
    if form.validate() and form.proves():
        # A count of its own: an intruder who knows the password can use up the one for sign-ins, and this stops them.
        rate_limits.spend("RATELIMIT_ACCOUNT", f"password:{user.key}")
        tasks.deliver_later(password_change.change_password(user, passwords.hash(form.new_password.data)))
        begin_session(user, has_proved_both="code" in form)
        flash(gettext("Your password was changed. You were signed out everywhere else."))
        return redirect(url_for("account.show"), 303)
    return _page(form), form.status


@blueprint.post("/account/password/strength")
@login_required
def strength() -> ResponseReturnValue:
    form = PasswordForm()
    return measure(form, form.new_password, _words)


def _words() -> tuple[str, ...]:
    user = current()
    return user.username, user.full_name, user.email


def _page(form: PasswordForm) -> str:
    return render_template("account/password.html", form=form)
