"""Refusing headers that no browser sends: parsing half a megabyte of cookies takes a third of a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

# All headers together, in characters: as in many servers, and more than our cookies and any browser need.
LONGEST = 16 * 1024

# Each takes microseconds to parse: 900 of them cost more than the rest of a small answer. Browsers keep at most 180 per
# site.
COOKIES = 200

# Query parameters, each of which costs as much as a short header. Operators select a page of emails at once.
PARAMETERS = 256

# A host's name, with its port.
HOST_LONGEST = 260

# These answers come before the app, which adds such headers to all others.
TEXT = [
    ("Content-Type", "text/plain"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]


def init_app(app: Flask) -> None:
    app.wsgi_app = HeaderLimits(app.wsgi_app)  # type: ignore[method-assign]


class HeaderLimits:
    """Refuses long headers, and impossible hosts, before anything parses them."""

    def __init__(self, wsgi_app: WSGIApplication) -> None:
        self.wsgi_app = wsgi_app

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        size = sum(len(value) for name, value in environ.items() if name.startswith("HTTP_"))
        if size > LONGEST or environ.get("HTTP_COOKIE", "").count(";") >= COOKIES:
            start_response("431 Request Header Fields Too Large", TEXT)
            return [b"Too many cookies or other headers. Delete this site's cookies, and try again.\n"]
        if environ.get("QUERY_STRING", "").count("&") >= PARAMETERS:
            start_response("414 URI Too Long", TEXT)
            return [b"Too many parameters in this address. Remove what follows the question mark, and try again.\n"]
        if not _can_be_host(environ.get("HTTP_HOST", "")):
            start_response("400 Bad Request", TEXT)
            return [b"No site can have this name. Check the address, and try again.\n"]
        return self.wsgi_app(environ, start_response)


def _can_be_host(name: str) -> bool:
    """Return whether pages can be rendered for this name; for others, not even an error page can."""
    try:
        return len(name) <= HOST_LONGEST and name.encode("idna") is not None
    except UnicodeError:
        return False
