"""Who is signed in, for a reverse proxy that guards another app and tells it who its visitors are."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Blueprint, current_app, redirect, request, session, url_for
from flask.typing import ResponseReturnValue

from webapp.accounts import sessions
from webapp.pages.shared import way_on
from webapp.pages.shared.auth import note_seen

blueprint = Blueprint("identity", __name__)

# These characters stay as they are in a header; the rest is percent-encoded as UTF-8.
PLAIN = " !#$&'()*+,/:;=?@[]"


@blueprint.get("/auth")
def show() -> ResponseReturnValue:
    """Answer who is signed in, or 401; with ?redirect, send the person to sign in instead, and back."""
    # Flask-Login's own key. A proxy asks for every request to another app, and loading the whole user takes three times
    # as long.
    token = session.get("_user_id")
    if token and (person := sessions.identify(token)):
        note_seen(token, person.seen_at)
        return "", 204, _names(person)
    if "redirect" in request.args:
        # An absolute URL: the proxy passes it to a browser that requested another host.
        login = f"{current_app.config['PUBLIC_URL']}{url_for('login.show')}"
        return redirect(f"{login}{way_on.query(_asked_for())}", 303)
    return "", 401


def _names(person: Any) -> dict[str, str]:
    headers = {"Remote-User": str(person.id), "Remote-Name": quote(person.full_name or person.username, safe=PLAIN)}
    if person.email_verified_at is not None:
        headers["Remote-Email"] = quote(person.email, safe=PLAIN)
    return headers


def _asked_for() -> str | None:
    """Return the URL that the proxy was asked for, from nginx's or Caddy's headers. Not trusted: way_on checks it."""
    if url := request.headers.get("X-Original-URL"):
        return url
    proto, host, uri = (request.headers.get(f"X-Forwarded-{part}", "") for part in ("Proto", "Host", "Uri"))
    return f"{proto}://{host}{uri}" if proto and host else None
