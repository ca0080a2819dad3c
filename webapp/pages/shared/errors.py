"""Error pages: what happened, and what to do next."""

from __future__ import annotations

from datetime import timedelta

import structlog
from flask import Flask, g, render_template
from flask.typing import ResponseReturnValue
from flask_babel import format_timedelta
from flask_babel import lazy_gettext as _
from flask_wtf.csrf import CSRFError
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError  # noqa: A004 - SQLAlchemy's own
from werkzeug.exceptions import HTTPException, InternalServerError, ServiceUnavailable, TooManyRequests

from webapp import signals
from webapp.db.outages import is_outage
from webapp.extensions import login
from webapp.pages.shared.rate_limits import TooManyGuesses

log = structlog.get_logger(__name__)

RETRY_AFTER = 10

TEXTS = {
    400: (_("Something was wrong with that request"), _("Please go back, reload the page and try again.")),
    403: (_("You don't have access to this page"), _("You may need to sign in with another account.")),
    404: (_("Page not found"), _("The address may be mistyped, or the page has moved.")),
    405: (_("This page can't do that"), _("Please open the page again and use its buttons.")),
    410: (_("This page is gone"), _("Please start again from the beginning.")),
    413: (_("That was too much text"), _("Please send less text. Nothing was saved.")),
    429: (_("Too many attempts"), _("Please wait a little, then try again.")),
    503: (
        _("We're having trouble right now"),
        _("Nothing was lost. This usually fixes itself within a minute."),
    ),
    500: (_("Something went wrong on our side"), _("Nothing was lost. Please try again in a minute.")),
}


# The database is away, too slow, or all our connections to it are in use.
DATABASE_DOWN = (OperationalError, InterfaceError, TimeoutError)


def init_app(app: Flask) -> None:
    app.register_error_handler(HTTPException, _show)
    for error in DATABASE_DOWN:
        app.register_error_handler(error, _show_database_down)
    app.register_error_handler(signals.ReceiverFailed, _show_undone)


def _show_database_down(error: Exception) -> ResponseReturnValue:
    # An outage is logged once, when it begins; waiting too long for a lock or a connection is logged every time.
    if not is_outage(error):
        log.error("database_failed", error=type(error).__name__, exc_info=not isinstance(error, TimeoutError) and error)
    # Loading the signed-in user would need the database too.
    g._login_user = login.anonymous_user()  # noqa: SLF001 - where Flask-Login keeps it
    return _show(ServiceUnavailable(retry_after=RETRY_AFTER))


def _show_undone(_error: Exception) -> ResponseReturnValue:
    title, advice = _("We couldn't finish that"), _("Nothing was changed. Please go back and try again in a minute.")
    return render_template("error.html", code=500, title=title, advice=advice, forgets=False), 500


def _show(error: HTTPException) -> ResponseReturnValue:
    code = error.code or InternalServerError.code
    if code < 400:
        return error.get_response()
    title, advice = TEXTS.get(code, TEXTS[400] if code < 500 else TEXTS[500])
    if isinstance(error, TooManyRequests) and isinstance(error.retry_after, int):
        wait = format_timedelta(timedelta(seconds=error.retry_after), threshold=1.2)
        advice = _("Please try again in %(wait)s. Nothing was changed.", wait=wait)
    if isinstance(error, CSRFError):
        title, advice = _("This page expired"), _("Nothing was changed. Please go back, reload the page and try again.")
    headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Retry-After"}}
    forgets = isinstance(error, TooManyGuesses)
    return render_template("error.html", code=code, title=title, advice=advice, forgets=forgets), code, headers
