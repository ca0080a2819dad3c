"""The landing page."""

from __future__ import annotations

from flask import Blueprint, render_template

blueprint = Blueprint("home", __name__)


@blueprint.get("/")
def show() -> str:
    return render_template("home.html")
