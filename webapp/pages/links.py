"""A link's token, kept in a cookie that only the link's own page gets: out of the address bar, history and logs."""

from __future__ import annotations

from flask import Response, current_app, make_response, request
from flask.typing import ResponseReturnValue

COOKIE_SECONDS = 3600


def keep(page: ResponseReturnValue, token: str, path: str) -> Response:
    """Answer with this page, and keep the token for what is below the path."""
    response = make_response(page)
    response.set_cookie(
        _name(),
        token,
        max_age=COOKIE_SECONDS,
        path=path,
        secure=current_app.config["SESSION_COOKIE_SECURE"],
        httponly=True,
        samesite="Lax",
    )
    return response


def kept() -> str:
    return request.cookies.get(_name(), "")


def drop(response: Response, path: str) -> None:
    response.delete_cookie(_name(), path=path)


def _name() -> str:
    # Not "__Host-", which would be sent to every page.
    return "__Secure-link" if current_app.config["SESSION_COOKIE_SECURE"] else "link"


def mask(address: str) -> str:
    """Return enough of an address for its owner to know it by."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}{'•' * min(6, max(1, len(local) - 1))}{at}{domain}"
