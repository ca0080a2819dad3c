"""Pages for what goes wrong: what happened, and what to do next."""

from __future__ import annotations

from flask import Flask, render_template
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from werkzeug.exceptions import HTTPException, InternalServerError

TEXTS = {
    400: (_("That request made no sense to us"), _("Please go back, reload the page and try again.")),
    403: (_("That is not for you"), _("You may need to sign in with another account.")),
    404: (_("There is nothing here"), _("The address may be mistyped, or the page has moved.")),
    405: (_("That does not work here"), _("Please open the page again and use its buttons.")),
    413: (_("That was too much at once"), _("Please send less text; nothing was saved.")),
    500: (_("Something broke on our side"), _("Nothing was lost. Please try again in a minute.")),
}


def init_app(app: Flask) -> None:
    app.register_error_handler(HTTPException, _show)


def _show(error: HTTPException) -> ResponseReturnValue:
    code = error.code or InternalServerError.code
    if code < 400:
        return error.get_response()
    title, advice = TEXTS.get(code, TEXTS[400] if code < 500 else TEXTS[500])
    headers = {name: value for name, value in error.get_headers() if name == "Allow"}
    return render_template("error.html", code=code, title=title, advice=advice), code, headers
