"""How the mail is, at a glance."""

from __future__ import annotations

from flask import render_template, request
from sqlalchemy import text

from webapp import figures, trends
from webapp.broker import BrokerDown
from webapp.extensions import db, huey
from webapp.pages.ops import plots
from webapp.pages.ops.gate import blueprint


@blueprint.get("")
def show() -> str:
    name = request.args.get("span", "day")
    parts = trends.series(trends.SPANS.get(name, trends.SPANS["day"]))
    return render_template(
        "ops/overview.html",
        now=figures.stats(),
        queue=_queue(),
        database=db.engine.dialect.name,
        migration=db.session.scalar(text("SELECT version_num FROM alembic_version")),
        span=name if name in trends.SPANS else "day",
        spans=trends.SPANS,
        parts=parts,
        throughput=plots.throughput(parts),
        latency=plots.latency(parts),
        width=plots.WIDTH,
        height=plots.HEIGHT,
        start_worker=figures.START_WORKER,
    )


def _queue() -> int | None:
    """Return how many hints wait; nothing when the queue does not answer."""
    try:
        return huey.waiting()
    except BrokerDown:
        return None
