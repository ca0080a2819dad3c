"""The account's password, changed by whoever knows it."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import login_required

from webapp.accounts import password_change, passwords, sessions
from webapp.delivery import tasks
from webapp.pages.shared.auth import current, current_password_field, knows_password, sign_in
from webapp.pages.shared.forms import Form, is_strong, new_password_field

blueprint = Blueprint("password", __name__)


class PasswordForm(Form):
    password = current_password_field(_("Current password"))
    new_password = new_password_field(_("New password"))

    def has_strong_password(self) -> bool:
        return is_strong(self.new_password, current().username, current().full_name, current().email)


@blueprint.get("/account/password")
@login_required
def show() -> str:
    return _page(PasswordForm())


@blueprint.post("/account/password")
@login_required
def submit() -> ResponseReturnValue:
    form, user = PasswordForm(), current()
    if form.validate() and knows_password(user, form.password):
        try:
            notice = password_change.change_password(user, passwords.hash(form.new_password.data))
        except sessions.PasswordChanged:
            return redirect(url_for("login.show"), 303)
        if notice is not None:
            tasks.deliver_later(notice)
        sign_in(user)
        flash(gettext("Your password was changed. You were signed out everywhere else."))
        return redirect(url_for("account.show"), 303)
    return _page(form), form.status


def _page(form: PasswordForm) -> str:
    return render_template("account/password.html", form=form)
