"""The metrics, for Prometheus alone; each request is counted for them."""

from __future__ import annotations

import hmac
import ipaddress
import time

from flask import Blueprint, Flask, Response, current_app, g, request

from webapp.monitoring import http_requests, prometheus

blueprint = Blueprint("metrics", __name__)

# What proxies add: then the request comes from somewhere else, whatever address it has.
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")


def init_app(app: Flask) -> None:
    app.after_request(_count)


def _count(response: Response) -> Response:
    # Who asked so wrongly that nothing began is counted, and took no time.
    duration = time.monotonic() - g.begun if "begun" in g else 0
    http_requests.count(request.endpoint, request.method, response.status_code, duration)
    return response


@blueprint.get("/metrics")
def show() -> Response:
    token = current_app.config["METRICS_TOKEN"]
    if token is None:
        if not is_local():
            return Response("Set METRICS_TOKEN to read this from another machine.\n", 403, mimetype="text/plain")
    elif not hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()):
        headers = {"WWW-Authenticate": "Bearer"}
        return Response("METRICS_TOKEN is wanted as a bearer token.\n", 401, headers, mimetype="text/plain")
    return Response(prometheus.render() + http_requests.render(), content_type=prometheus.CONTENT_TYPE)


def is_local() -> bool:
    """Return whether the request comes from this machine, and through no proxy on it."""
    # A proxy need not say that it is one.
    if current_app.config["TRUSTED_PROXIES"] or any(header in request.headers for header in FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        # A Unix socket has no address, and who speaks to it is mostly a proxy.
        return False
