"""Metrics for Prometheus, and the counting of requests for them."""

from __future__ import annotations

import hmac
import ipaddress
import time

from flask import Blueprint, Flask, Response, current_app, g, request

from webapp.db.base import db
from webapp.monitoring import http_requests, pool, prometheus

blueprint = Blueprint("metrics", __name__)

# Headers that proxies add: then the request comes from elsewhere, whatever its address.
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")


def init_app(app: Flask) -> None:
    app.after_request(_count)
    with app.app_context():
        pool.watch(db.engine, app.config["DATABASE_POOL_SIZE"])


def _count(response: Response) -> Response:
    # A request that failed before it began counts with a duration of 0.
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
    """Return whether the request comes from this machine, and not through a proxy on it."""
    # A proxy does not have to add these headers, so the setting counts too.
    if current_app.config["TRUSTED_PROXIES"] or any(header in request.headers for header in FORWARDED):
        return False
    try:
        return ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        # A Unix socket has no address, and its client is usually a proxy.
        return False
