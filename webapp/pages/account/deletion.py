"""The end of an account, asked for with the password."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_login import login_required

from webapp.accounts import account
from webapp.delivery import tasks
from webapp.pages.shared.auth import current, current_password_field, knows_password
from webapp.pages.shared.forms import Form

blueprint = Blueprint("deletion", __name__)


class DeleteForm(Form):
    password = current_password_field()


@blueprint.get("/account/delete")
@login_required
def show() -> str:
    return _page(DeleteForm())


@blueprint.post("/account/delete")
@login_required
def submit() -> ResponseReturnValue:
    form = DeleteForm()
    if form.validate() and knows_password(current(), form.password):
        email_id = account.end(current())
        session.clear()
        if email_id is not None:
            tasks.deliver_later(email_id)
        flash(gettext("Your account was deleted. We've sent you one last email to confirm it."))
        return redirect(url_for("home.show"), 303)
    return _page(form), form.status


def _page(form: DeleteForm) -> str:
    return render_template("account/delete.html", form=form)
