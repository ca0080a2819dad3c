"""Access to these pages: admins, and viewers, who can only look. Everybody else gets a 403, signed in or not."""

from __future__ import annotations

from flask import Blueprint, abort, current_app, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user

from webapp import audit
from webapp.accounts import sessions
from webapp.pages.shared.auth import AgainForm, current

blueprint = Blueprint("ops", __name__, url_prefix="/ops")


@blueprint.before_request
def let_operators_in() -> ResponseReturnValue | None:
    if not current_user.is_authenticated or not current_user.is_operator:
        abort(403)
    if current_app.config["REQUIRE_SECOND_FACTOR"] and not current_user.has_second_factor:
        return redirect(url_for("second_factor.show"), 303)
    if request.method == "POST" and not current_user.is_admin:
        abort(403)
    audit.actor.set(f"user {current_user.id} ({current_user.username})")
    return None if request.method != "POST" or sessions.is_reauthenticated(current()) else _ask_again()


def _ask_again() -> ResponseReturnValue | None:
    """Ask for the second factor, or else the password, on a page that holds the original request.

    Return None once that is given: the request is then carried out.
    """
    form = AgainForm()
    if form.validate() and form.proves():
        return None
    if form.is_stale:
        # Perhaps not sent by this person: the action refuses it too, and shows its own page.
        return None
    asked = [(name, value) for name, value in request.form.items(multi=True) if name not in form]
    page = render_template("ops/again.html", form=form, asked=asked, here=request.full_path.rstrip("?"))
    return page, form.status


@blueprint.teardown_request
def let_operator_go(_error: BaseException | None) -> None:
    audit.actor.set(None)
