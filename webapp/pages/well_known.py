"""Pages that programs look for under /.well-known."""

from __future__ import annotations

from datetime import timedelta

from flask import Blueprint, Response, abort, current_app, redirect, url_for
from flask.typing import ResponseReturnValue

from webapp.db import clock

blueprint = Blueprint("well_known", __name__, url_prefix="/.well-known")

# Under a year, as RFC 9116 recommends.
GOOD_FOR = timedelta(days=180)


@blueprint.get("/security.txt")
def security() -> Response:
    """Say where to report a vulnerability (RFC 9116), if SECURITY_CONTACT is set."""
    contact = current_app.config["SECURITY_CONTACT"] or abort(404)
    expires = (clock.now() + GOOD_FOR).replace(hour=0, minute=0, second=0, microsecond=0)
    lines = [
        f"Contact: {contact}",
        f"Expires: {expires:%Y-%m-%dT%H:%M:%SZ}",
        f"Preferred-Languages: {', '.join(current_app.config['LANGUAGES'])}",
        f"Canonical: {current_app.config['PUBLIC_URL']}{url_for('well_known.security')}",
    ]
    return Response("".join(f"{line}\n" for line in lines), content_type="text/plain; charset=utf-8")


@blueprint.get("/change-password")
def change_password() -> ResponseReturnValue:
    """Redirect password managers to the page, which asks people to sign in first."""
    return redirect(url_for("password.show"), 303)
