"""Deleting the account, with the password, and the second factor if one is on."""

from __future__ import annotations

from flask import Blueprint, render_template, session
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_login import login_required

from webapp.accounts import account
from webapp.delivery import tasks
from webapp.pages.shared.auth import ProofForm, current, say_goodbye

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
        return say_goodbye(gettext("Your account was deleted. We've sent you one last email to confirm it."))
    return _page(form), form.status


def _page(form: ProofForm) -> str:
    return render_template("account/delete.html", form=form)
