"""The state of email at a glance."""

from __future__ import annotations

from flask import render_template, request
from sqlalchemy import text

from webapp.db.base import db
from webapp.delivery import heartbeats
from webapp.extensions import huey
from webapp.monitoring import queries, timeseries
from webapp.pages.ops import plots
from webapp.pages.ops.access import blueprint
from webapp.queue.broker_breaker import BrokerDown


@blueprint.get("")
def show() -> str:
    name = request.args.get("span", "day")
    parts = timeseries.series(timeseries.SPANS.get(name, timeseries.SPANS["day"]))
    return render_template(
        "ops/overview.html",
        now=queries.stats(),
        queue=_queue(),
        database=db.engine.dialect.name,
        migration=db.session.scalar(text("SELECT version_num FROM alembic_version")),
        span=name if name in timeseries.SPANS else "day",
        spans=timeseries.SPANS,
        parts=parts,
        throughput=plots.throughput(parts),
        latency=plots.latency(parts),
        height=plots.HEIGHT,
        start_worker=heartbeats.START_WORKER,
    )


def _queue() -> int | None:
    """Return how many hints wait, or None if the queue does not answer."""
    try:
        return huey.waiting()
    except BrokerDown:
        return None
