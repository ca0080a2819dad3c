"""The account of whoever is signed in."""

from __future__ import annotations

from flask import Blueprint, render_template
from flask_login import current_user, login_required

from webapp import sessions
from webapp.extensions import db
from webapp.pages import language
from webapp.pages.forms import Form

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
@login_required
def show() -> str:
    language.keep(current_user)
    # A transaction of its own: on SQLite one that began by reading may not write.
    db.session.commit()
    sessions.touch(current_user.session_token)
    db.session.commit()
    return render_template("account.html", form=Form())
