"""The metrics, for Prometheus alone."""

from __future__ import annotations

import hmac
import ipaddress

from flask import Blueprint, Response, current_app, request

from webapp.monitoring import prometheus

blueprint = Blueprint("metrics", __name__)

# What proxies add: then the request comes from somewhere else, whatever address it has.
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")


@blueprint.get("/metrics")
def show() -> Response:
    token = current_app.config["METRICS_TOKEN"]
    if token is None:
        if not is_local():
            return Response("Set METRICS_TOKEN to read this from another machine.\n", 403, mimetype="text/plain")
    elif not hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()):
        headers = {"WWW-Authenticate": "Bearer"}
        return Response("METRICS_TOKEN is wanted as a bearer token.\n", 401, headers, mimetype="text/plain")
    return Response(prometheus.render(), content_type=prometheus.CONTENT_TYPE)


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
