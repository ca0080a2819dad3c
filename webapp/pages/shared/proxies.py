"""Where a request comes from, as the proxies before us say it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import structlog
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from webapp.pages.shared import networks

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = structlog.get_logger(__name__)


def init_app(app: Flask) -> None:
    app.wsgi_app = Understood(app.wsgi_app)  # type: ignore[method-assign]
    if proxies := app.config["TRUSTED_PROXIES"]:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]


class Understood:
    """Gives requests an address and a scheme that are such: what a proxy passes on is anybody's text.

    What is no address counts as the peer's own, so that rubbish makes nobody share a limit with everybody.
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
