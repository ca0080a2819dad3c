"""Requests as Prometheus counts them: how many, how they ended, how long they took, by endpoint.

Each process counts for itself, unless all processes of a server share a folder for it.
"""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

# Most pages are fast; some hash a password, and forms may wait for their turn.
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
METHODS = {"GET", "HEAD", "POST"}

disable_created_metrics()
registry = CollectorRegistry()
requests = Counter(
    "signup_http_requests", "Requests by endpoint and status.", ["endpoint", "method", "code"], registry=registry
)
seconds = Histogram(
    "signup_http_request_duration_seconds",
    "Duration of requests.",
    ["endpoint", "method"],
    buckets=BOUNDS,
    registry=registry,
)


def share(folder: str) -> None:
    """Make this process, and those that it forks, count in files in this folder."""
    # The library does this itself if the variable is set before its import; here it is imported already.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue()


def count(endpoint: str | None, method: str, code: int, duration: float) -> None:
    """Count a request. `endpoint`: the page's name in our code, or None if there is none; never what somebody typed."""
    labels = (endpoint or "", method if method in METHODS else "other")
    requests.labels(*labels, str(code)).inc()
    seconds.labels(*labels).observe(duration)


def render() -> str:
    """Return the counts of all processes of this server, in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(registry).decode()
    of_all = CollectorRegistry()
    MultiProcessCollector(of_all)
    return generate_latest(of_all).decode()
