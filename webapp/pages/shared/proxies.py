"""Where a request comes from, according to the proxies in front of us."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask, current_app, request
from werkzeug.middleware.proxy_fix import ProxyFix

from webapp.pages.shared import networks

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = structlog.get_logger(__name__)


def init_app(app: Flask) -> None:
    app.wsgi_app = Understood(app.wsgi_app)  # type: ignore[method-assign]
    if proxies := app.config["TRUSTED_PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]


def country() -> str | None:
    """Return the client's country, two capital letters of ISO 3166, if the proxy says it: ZZ is none."""
    header = current_app.config["COUNTRY_HEADER"]
    said = request.headers.get(header, "") if header else ""
    return said if re.fullmatch("(?!ZZ)[A-Z]{2}", said) else None


class Understood:
    """Gives every request a valid address and scheme: what a proxy passes on may be any text.

    An invalid address is replaced by the peer's own, so that garbage does not make everybody share one limit.
    """

    def __init__(self, wsgi_app: WSGIApplication) -> None:
        self.wsgi_app = wsgi_app
        self.has_told = False

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        peer: dict[str, Any] = environ.get("werkzeug.proxy_fix.orig", environ)
        address = networks.read(environ.get("REMOTE_ADDR")) or networks.read(peer.get("REMOTE_ADDR"))
        environ["REMOTE_ADDR"] = str(address or "")
        if address is None and not self.has_told:
            self.has_told = True
            log.warning("address_unknown", advice="all share one limit: see TRUSTED_PROXIES")
        if environ["wsgi.url_scheme"] not in {"http", "https"}:
            environ["wsgi.url_scheme"] = peer["wsgi.url_scheme"]
        return self.wsgi_app(environ, start_response)
