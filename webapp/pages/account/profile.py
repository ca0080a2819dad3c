"""The account's username and full name."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import login_required
from wtforms import StringField

from webapp.accounts import account, users
from webapp.delivery import tasks
from webapp.pages.shared import rate_limits
from webapp.pages.shared.auth import current
from webapp.pages.shared.forms import Form, NameFields

blueprint = Blueprint("profile", __name__)


class ProfileForm(NameFields, Form):
    def validate_username(self, field: StringField) -> None:
        """Let people keep their own name, even if nobody may choose it any more."""
        if field.data == current().username.strip():
            self.name = current().username
        else:
            super().validate_username(field)


@blueprint.get("/account/profile")
@login_required
def show() -> str:
    return _page(ProfileForm(obj=current()))


@blueprint.post("/account/profile")
@login_required
def submit() -> ResponseReturnValue:
    form = ProfileForm()
    if form.validate():
        # Every attempt reveals whether a name is taken.
        rate_limits.spend("RATELIMIT_RESEND", f"profile:{current().key}")
        try:
            email_id = account.rename(current(), username=form.name, full_name=form.full_name.data, own=form.own)
        except users.UsernameTaken:
            form.username.errors = [_("That username is taken. Please choose another.")]
        else:
            if email_id is not None:
                tasks.deliver_later(email_id)
            flash(gettext("Saved."))
            return redirect(url_for("account.show"), 303)
    return _page(form), form.status


def _page(form: ProfileForm) -> str:
    return render_template("account/profile.html", form=form)
