"""The account of whoever is signed in."""

from __future__ import annotations

from flask import Blueprint, render_template
from flask_login import login_required

from webapp.pages.forms import Form
from webapp.pages.signed_in import note_seen

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
@login_required
def show() -> str:
    note_seen()
    return render_template("account/hub.html", form=Form())
