"""Where people go once they are signed in: `next`, which anybody may have written, or what the settings say."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from flask import Flask, current_app, redirect, request, url_for
from werkzeug import Response

from webapp.accounts import links

PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
# Browsers drop line breaks and tabs, and treat a backslash as a slash.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
# Some software reads these as another host, or as another path than they seem to be.
MISREAD = re.compile(r"^//|/\.\.?(/|$)")


def init_app(app: Flask) -> None:
    app.jinja_env.globals["next_query"] = query


def asked() -> str | None:
    """Return the `next` of this request, if it is a place of ours."""
    return accept(request.args.get("next"))


def accept(wanted: str | None) -> str | None:
    """Return a path of this host, or a URL of an app in the settings, fit for a header; None for anything else.

    An app is recognized by its whole origin, character by character: one that is the same only by the rules of URLs is
    refused.
    """
    if not wanted or len(wanted) > links.LEADS_TO_MAX or UNSAFE.search(wanted) or " " in wanted:
        return None
    place = quote(wanted, safe=PRINTABLE, errors="replace")
    path = place
    for origin in (current_app.config["PUBLIC_URL"], *origins()):
        if place.startswith(origin) and place[len(origin) :][:1] in {"", "/", "?", "#"}:
            path = place[len(origin) :]
            path = path if path.startswith("/") else f"/{path}"
    # Decoded twice, as a careless proxy and the app behind it would.
    plain = unquote(unquote(re.split("[?#]", path)[0]))
    if not path.startswith("/") or UNSAFE.search(plain) or MISREAD.search(plain):
        return None
    return place if len(place) <= links.LEADS_TO_MAX else None


def here() -> str | None:
    """Return this page's own path, to come back to after signing in."""
    if request.method != "GET":
        return None
    path = quote(request.script_root + request.path, safe="/:@!$&'()*+,;=~")
    text = request.query_string.decode("ascii", "replace")
    return accept(f"{path}?{text}" if text else path)


def query(place: str | None = None) -> str:
    """Return the query of a link to sign in or up, which leads on to this place, or to this request's `next`."""
    place = accept(place) or asked()
    return f"?next={quote(place)}" if place else ""


def follow(place: str | None) -> Response:
    """Redirect there, or to the default place."""
    return redirect(accept(place) or home(), 303)


def home() -> str:
    return str(current_app.config["APP_URL"] or url_for("account.show"))


def origins() -> list[str]:
    """Return the origins of the apps that people may be sent to."""
    app_url = urlsplit(current_app.config["APP_URL"] or "")
    own = [f"{app_url.scheme}://{app_url.netloc}"] if app_url.netloc else []
    return [*own, *current_app.config["TRUSTED_APPS"]]
