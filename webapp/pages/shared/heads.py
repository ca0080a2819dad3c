"""Requests with a head like no browser's: to read half a megabyte of cookies takes a third of a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

# In characters, all headers together: as many servers take, and more than our cookies and any browser need.
LONGEST = 16 * 1024

# Of a query, each of which costs as much as a short header. Operators choose a page of emails at once.
PARAMETERS = 256

TEXT = [("Content-Type", "text/plain")]


def init_app(app: Flask) -> None:
    app.wsgi_app = Brief(app.wsgi_app)  # type: ignore[method-assign]


class Brief:
    """Refuses long heads before anybody reads what they say."""

    def __init__(self, wsgi_app: WSGIApplication) -> None:
        self.wsgi_app = wsgi_app

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if sum(len(value) for name, value in environ.items() if name.startswith("HTTP_")) > LONGEST:
            start_response("431 Request Header Fields Too Large", TEXT)
            return [b"Too many cookies or other headers. Delete this site's cookies, and try again.\n"]
        if environ.get("QUERY_STRING", "").count("&") >= PARAMETERS:
            start_response("414 URI Too Long", TEXT)
            return [b"Too many parameters in this address. Remove what follows the question mark, and try again.\n"]
        return self.wsgi_app(environ, start_response)
