"""The second step of signing in if a second factor is on: its code, after the password."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import ngettext

from webapp.accounts.second_factor import factor
from webapp.accounts.second_factor.factor import CodeWrong, TooManyTries
from webapp.delivery import tasks
from webapp.pages.shared import known_browser, rate_limits, way_on
from webapp.pages.shared.auth import CodeFields, begin_session, half_signed_in
from webapp.pages.shared.forms import Form

blueprint = Blueprint("login_code", __name__)


class CodeForm(CodeFields, Form):
    pass


@blueprint.get("/login/code")
def show() -> ResponseReturnValue:
    return _page(CodeForm()) if half_signed_in() else _anew()


@blueprint.post("/login/code")
def submit() -> ResponseReturnValue:
    user, form = half_signed_in(), CodeForm()
    if user is None:
        return _anew()
    if form.validate():
        try:
            accepted = factor.check(user, form.typed, known_by=known_browser.name_for(user))
        except (CodeWrong, TooManyTries) as error:
            form.refuse(error)
        else:
            rate_limits.spend("RATELIMIT_ACCOUNT", user.key)
            # Commits the used code together with the session.
            begin_session(user, has_proved_both=True)
            if accepted.notice is not None:
                tasks.deliver_later(accepted.notice)
                left = accepted.left
                flash(ngettext("You have %(num)s recovery code left.", "You have %(num)s recovery codes left.", left))
            return way_on.follow(way_on.asked())
    return _page(form), form.status


def _page(form: CodeForm) -> str:
    return render_template("login_code.html", form=form)


def _anew() -> ResponseReturnValue:
    return redirect(f"{url_for('login.show')}{way_on.query()}", 303)
