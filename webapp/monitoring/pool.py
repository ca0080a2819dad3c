"""How many of its database connections each web process uses, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import Gauge
from sqlalchemy import Engine, event

from webapp.monitoring.http_requests import registry

# Summed over the live processes of a server.
connections = Gauge(
    "signup_database_connections",
    "Database connections: in use, and the limit.",
    ["state"],
    registry=registry,
    multiprocess_mode="livesum",
)


def watch(engine: Engine, limit: int) -> None:
    """Report this engine's pool from now on."""
    connections.labels("limit").set(limit)
    in_use = connections.labels("in_use")

    # Looked up each time rather than counted: a connection that turns out to be dead is handed out twice.
    @event.listens_for(engine, "checkout")
    def on_checkout(*_: Any) -> None:
        in_use.set(engine.pool.checkedout())  # type: ignore[attr-defined]

    @event.listens_for(engine, "checkin")
    def on_checkin(*_: Any) -> None:
        # This connection still counts as checked out.
        in_use.set(max(engine.pool.checkedout() - 1, 0))  # type: ignore[attr-defined]
