"""Is it alive, and can it serve: for load balancers and operators."""

from __future__ import annotations

from functools import cache

from alembic.script import ScriptDirectory
from flask import Blueprint, current_app, jsonify
from flask.typing import ResponseReturnValue
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from webapp.db import outages
from webapp.db.base import db
from webapp.extensions import huey
from webapp.paths import ROOT
from webapp.queue.broker_breaker import BrokerDown

blueprint = Blueprint("health", __name__)


@blueprint.get("/livez")
def live() -> ResponseReturnValue:
    return jsonify(status="alive")


@blueprint.get("/readyz")
def ready() -> ResponseReturnValue:
    """Ready is who can take signups: who can write to the database, and is not behind it; the queue may be away."""
    database = _database()
    if database != "up":
        return jsonify(status="not ready", database=database), 503
    try:
        huey.waiting()
    except BrokerDown:
        return jsonify(status="degraded", database=database, broker="down")
    return jsonify(status="ready", database=database, broker="up")


def _database() -> str:
    if outages.of(current_app).is_full():
        return "full"
    try:
        # It changes nothing, and is refused all the same by a database that may only be read.
        db.session.execute(text("UPDATE alembic_version SET version_num = version_num WHERE 1 = 0"))
        current = db.session.scalar(text("SELECT version_num FROM alembic_version"))
        db.session.rollback()
    except SQLAlchemyError:
        return "down"
    known = _revisions()
    # A revision that this build does not know is of a newer one, which keeps to what this one needs.
    return "up" if current == known[0] or current not in known else f"at migration {current}: run flask db upgrade"


@cache
def _revisions() -> list[str]:
    """Return the migrations that this build knows, the newest first. Reading them takes longer than all the rest."""
    return [revision.revision for revision in ScriptDirectory(str(ROOT / "migrations")).walk_revisions()]
