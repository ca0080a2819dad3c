"""Deleting the account, with the password, and the second factor if one is on."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_login import login_required

from webapp.accounts import account
from webapp.delivery import tasks
from webapp.pages.shared.auth import ProofForm, current

blueprint = Blueprint("deletion", __name__)


@blueprint.get("/account/delete")
@login_required
def show() -> str:
    return _page(ProofForm())


@blueprint.post("/account/delete")
@login_required
def submit() -> ResponseReturnValue:
    form = ProofForm()
    if form.validate() and form.proves():
        email_id = account.end(current())
        session.clear()
        if email_id is not None:
            tasks.deliver_later(email_id)
        flash(gettext("Your account was deleted. We've sent you one last email to confirm it."))
        return redirect(url_for("home.show"), 303)
    return _page(form), form.status


def _page(form: ProofForm) -> str:
    return render_template("account/delete.html", form=form)
