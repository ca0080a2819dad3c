"""The host names that we answer to in development, and forms sent over http when cookies need https."""

from __future__ import annotations

from urllib.parse import urlsplit

import structlog
from flask import Flask, current_app, g, redirect, render_template, request
from flask.typing import ResponseReturnValue
from flask_babel import gettext

log = structlog.get_logger(__name__)

# Called by programs, which follow no redirects.
FOR_PROGRAMS = {"health", "identity", "metrics"}


def init_app(app: Flask) -> None:
    if app.config["APP_ENV"] == "development":
        app.before_request(_refuse_other_names)
        app.before_request(_lead_to_the_one_name)
    if app.config["SESSION_COOKIE_SECURE"]:
        app.before_request(_note_lost_cookie)


def _refuse_other_names() -> ResponseReturnValue | None:
    """Answer only to names of this machine: another site could point its own name here, and read the mailbox."""
    name, _port = _parts(request.host)
    public, _port = _parts(urlsplit(current_app.config["PUBLIC_URL"]).netloc)
    if _is_local(name) or name == public:
        return None
    advice = gettext(
        "In development we answer only to localhost and to the host of PUBLIC_URL. Please open %(url)s instead.",
        url=current_app.config["PUBLIC_URL"],
    )
    title = gettext("This isn't our address")
    return render_template("error.html", code=400, title=title, advice=advice, forgets=False), 400


def _lead_to_the_one_name() -> ResponseReturnValue | None:
    """Let signup and link share their cookies: browsers keep those of localhost and 127.0.0.1 apart."""
    url = current_app.config["PUBLIC_URL"]
    name, port = _parts(request.host)
    public, public_port = _parts(urlsplit(url).netloc)
    is_page = request.method in {"GET", "HEAD"} and request.blueprint not in FOR_PROGRAMS
    if is_page and name != public and port == public_port and _is_local(name) and _is_local(public):
        return redirect(f"{url}{request.full_path.rstrip('?')}", 307)
    return None


def _note_lost_cookie() -> None:
    """Log why forms fail: browsers send a Secure cookie over https only."""
    has_cookie = current_app.config["SESSION_COOKIE_NAME"] in request.cookies
    g.has_lost_cookie = request.method == "POST" and request.scheme == "http" and not has_cookie
    if g.has_lost_cookie and not current_app.extensions.get("cookie_lost"):
        # Once: repeated tries must not fill the log.
        current_app.extensions["cookie_lost"] = True
        log.warning(
            "cookie_lost",
            public_url=current_app.config["PUBLIC_URL"],
            advice="a form came over http, where browsers send no Secure cookie: open PUBLIC_URL, or, if a proxy"
            " before us speaks https, set TRUSTED_PROXIES",
        )


def _parts(host: str) -> tuple[str, str]:
    """Return a host's name and port."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host, ""
    return name.lower().rstrip("."), port or "80"


def _is_local(name: str) -> bool:
    return name in {"localhost", "127.0.0.1", "[::1]"} or name.endswith(".localhost")
