"""The landing page and robots.txt."""

from __future__ import annotations

from flask import Blueprint, Response, render_template

blueprint = Blueprint("home", __name__)

# Pages that emails link to, and personal ones. Pages that wait for an email show crawlers only a form.
UNLISTED = ("/account", "/ops", "/reset", "/verify")


@blueprint.get("/")
def show() -> str:
    return render_template("home.html")


@blueprint.get("/robots.txt")
def robots() -> Response:
    lines = ["User-agent: *", *(f"Disallow: {path}" for path in UNLISTED)]
    return Response("".join(f"{line}\n" for line in lines), mimetype="text/plain")
