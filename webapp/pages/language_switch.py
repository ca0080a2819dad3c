"""The button that changes the language of pages and emails; a link with ?language changes this browser's pages only."""

from __future__ import annotations

import re
from contextlib import suppress

from flask import Flask, abort, current_app, make_response, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from werkzeug.routing import BuildError

from webapp.accounts import users
from webapp.pages.shared import language
from webapp.pages.shared.auth import current
from webapp.pages.shared.forms import Form, csrf
from webapp.pages.signup import waiting

# A path on this site, and nothing that a browser reads as another site.
PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")


def init_app(app: Flask) -> None:
    app.add_url_rule("/language", "language", change, methods=["POST"])
    app.context_processor(lambda: {"page_path": _page_path, "writes_to_us": _is_written_to})


@csrf.exempt
def change() -> ResponseReturnValue:
    form = Form()
    chosen = request.form.get("language", "")
    if not form.validate() or not language.is_spoken(chosen):
        abort(400)
    written_to = [current()] if current_user.is_authenticated else []
    for user in (*written_to, waiting.pending_user()):
        if user is not None:
            users.set_locale(user, chosen)
    response = make_response(redirect(_back(), 303))
    language.remember(response, chosen)
    return response


def _is_written_to() -> bool:
    """Return whether this browser's person gets emails from us: then the choice applies to those too."""
    return current_user.is_authenticated or waiting.held() is not None


def _page_path() -> str:
    """Return the path of this page, or of its blueprint's page if this one only answers a form."""
    adapter = current_app.create_url_adapter(request)
    if request.method != "POST" or (adapter and adapter.test(method="GET")):
        return request.path
    with suppress(BuildError):
        return url_for(".show")
    return url_for("home.show")


def _back() -> str:
    path = request.form.get("back", "")
    return path if PATH.fullmatch(path) else url_for("home.show")
