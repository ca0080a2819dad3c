"""Who gets in: admins, and viewers who only look; nobody else, signed in or not (403)."""

from __future__ import annotations

import math

from flask import Blueprint, abort, render_template, request
from flask.typing import ResponseReturnValue
from flask_login import current_user

from webapp import audit
from webapp.accounts import sessions
from webapp.monitoring.formatting import duration
from webapp.pages.shared.auth import current, current_password_field, knows_password
from webapp.pages.shared.forms import Form

blueprint = Blueprint("ops", __name__, url_prefix="/ops")
blueprint.add_app_template_filter(duration)


class ReauthForm(Form):
    password = current_password_field()


@blueprint.app_template_filter()
def within(seconds: float | None) -> str:
    """Say how long mails took at most; beyond what is counted apart, only that."""
    return "> 24 h" if seconds == math.inf else duration(seconds)


@blueprint.before_request
def let_operators_in() -> ResponseReturnValue | None:
    if not current_user.is_authenticated or not current_user.is_operator:
        abort(403)
    if request.method == "POST" and not current_user.is_admin:
        abort(403)
    audit.actor.set(f"user {current_user.id} ({current_user.username})")
    return None if request.method != "POST" or sessions.is_reauthenticated(current()) else _ask_for_password()


def _ask_for_password() -> ResponseReturnValue | None:
    """Ask for the password on a page that holds what was asked; with it, what was asked is done."""
    form = ReauthForm()
    if form.validate() and knows_password(current(), form.password):
        return None
    if form.is_stale:
        # Perhaps not asked by this person: the action refuses it, too, and shows its own page.
        return None
    if form.password.name not in request.form:
        form.password.errors = ()
    own = {"csrf_token", form.password.name}
    asked = [(name, value) for name, value in request.form.items(multi=True) if name not in own]
    page = render_template("ops/password.html", form=form, asked=asked, here=request.full_path.rstrip("?"))
    return page, form.status if form.errors else 403


@blueprint.teardown_request
def let_operator_go(_error: BaseException | None) -> None:
    audit.actor.set(None)
