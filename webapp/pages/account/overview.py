"""The account of the signed-in person."""

from __future__ import annotations

from flask import Blueprint, render_template
from flask_login import login_required

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
@login_required
def show() -> str:
    return render_template("account/hub.html")
