"""Whether the app is alive and can serve, for load balancers and operators."""

from __future__ import annotations

from flask import Blueprint, current_app, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import SQLAlchemyError

from webapp.db import outages, schema
from webapp.db.outages import DatabaseAway
from webapp.extensions import huey
from webapp.queue.broker_breaker import BrokerDown

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def live() -> ResponseReturnValue:
    return jsonify(status="alive")


@blueprint.get("/readyz")
def ready() -> ResponseReturnValue:
    """Ready means able to accept signups: the database is writable and migrated; the queue may be away."""
    database = _database()
    if database != "up":
        return jsonify(status="not ready", database=database), 503
    try:
        huey.waiting()
    except BrokerDown:
        return jsonify(status="degraded", database=database, broker="down")
    return jsonify(status="ready", database=database, broker="up")


def _database() -> str:
    outage = outages.of(current_app)
    if outage.is_full():
        return "full"
    try:
        schema.check()
    except DatabaseAway as away:
        return f"{outages.reason(away)}: {outage.migrate}" if outages.is_unmigrated(away.orig) else "down"
    except SQLAlchemyError:
        return "down"
    return "up"
