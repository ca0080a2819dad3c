"""Where the person is signed in, and signing out elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_login import login_required

from webapp.accounts import sessions
from webapp.accounts.sessions import UserSession
from webapp.db import clock
from webapp.i18n import ago
from webapp.pages.shared.auth import current, forget, say_goodbye
from webapp.pages.shared.forms import Form

blueprint = Blueprint("sessions", __name__)


@dataclass(frozen=True)
class Seen:
    """A session in words. `key` identifies it and opens nothing; an id could be another session's after a restore."""

    key: str
    device: str
    address: str | None
    ago: str
    is_this_one: bool


@blueprint.get("/account/sessions")
@login_required
def show() -> str:
    return _page(Form())


@blueprint.post("/account/sessions/<key>/end")
@login_required
def end(key: str) -> ResponseReturnValue:
    form, user = Form(), current()
    if not form.validate():
        return _page(form), form.status
    if key == sessions.hashed(user.session_token):
        forget()
        return say_goodbye(gettext("You're signed out."))
    sessions.end_one(user, key)
    flash(gettext("That device was signed out."))
    return redirect(url_for("sessions.show"), 303)


@blueprint.post("/account/sessions/end-others")
@login_required
def end_others() -> ResponseReturnValue:
    form, user = Form(), current()
    if not form.validate():
        return _page(form), form.status
    sessions.end_others(user, user.session_token)
    flash(gettext("All other devices were signed out."))
    return redirect(url_for("sessions.show"), 303)


def _page(form: Form) -> str:
    return render_template("account/sessions.html", form=form, sessions=_seen())


def _seen() -> list[Seen]:
    """Return the person's sessions, this browser's first."""
    user = current()
    own = sessions.hashed(user.session_token)
    return sorted((_describe(one, own) for one in sessions.of(user)), key=lambda one: not one.is_this_one)


def _describe(one: UserSession, own: str) -> Seen:
    return Seen(
        key=one.token_hash,
        device=_device(one.browser, one.system),
        address=one.address,
        ago=ago((clock.now() - one.seen_at).total_seconds()),
        is_this_one=one.token_hash == own,
    )


def _device(browser: str | None, system: str | None) -> str:
    if browser and system:
        return str(gettext("%(browser)s on %(system)s", browser=browser, system=system))
    return browser or system or str(gettext("Unknown browser"))
