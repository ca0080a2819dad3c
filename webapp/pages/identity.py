"""Who is asking: for a reverse proxy that lets people through to another app, and tells that app who they are."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flask import Blueprint, current_app, redirect, request, session, url_for
from flask.typing import ResponseReturnValue

from webapp.accounts import sessions
from webapp.pages.shared import way_on
from webapp.pages.shared.auth import note_seen

blueprint = Blueprint("identity", __name__)

# What stands in a header as it is; the rest as the bytes of UTF-8, percent-encoded.
PLAIN = " !#$&'()*+,/:;=?@[]"


@blueprint.get("/auth")
def show() -> ResponseReturnValue:
    """Answer with who is signed in, or 401; with ?redirect lead to where one signs in instead, and back."""
    # Where Flask-Login keeps it. A proxy asks for each request of another app, and a whole user takes three times as
    # long.
    token = session.get("_user_id")
    if token and (person := sessions.identify(token)):
        note_seen(token, person.seen_at)
        return "", 204, _names(person)
    if "redirect" in request.args:
        # In full: it is passed on to a browser that asked another host.
        login = f"{current_app.config['PUBLIC_URL']}{url_for('login.show')}"
        return redirect(f"{login}{way_on.query(_asked_for())}", 303)
    return "", 401


def _names(person: Any) -> dict[str, str]:
    headers = {"Remote-User": str(person.id), "Remote-Name": quote(person.full_name or person.username, safe=PLAIN)}
    if person.email_verified_at is not None:
        headers["Remote-Email"] = quote(person.email, safe=PLAIN)
    return headers


def _asked_for() -> str | None:
    """Return the URL that the proxy was asked for, as nginx or Caddy tells it. It is not believed, only followed."""
    if url := request.headers.get("X-Original-URL"):
        return url
    proto, host, uri = (request.headers.get(f"X-Forwarded-{part}", "") for part in ("Proto", "Host", "Uri"))
    return f"{proto}://{host}{uri}" if proto and host else None
