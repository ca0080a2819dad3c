"""Who works, and who did what."""

from __future__ import annotations

from flask import render_template, request

from webapp.db.base import row_number
from webapp.delivery import heartbeats
from webapp.monitoring import queries
from webapp.pages.ops.access import blueprint

PAGE = 100


@blueprint.get("/workers")
def show_workers() -> str:
    return render_template(
        "ops/workers.html",
        workers=queries.workers(),
        in_hand=queries.in_hand(),
        start_worker=heartbeats.START_WORKER,
    )


@blueprint.get("/audit")
def show_audit() -> str:
    found = queries.audited(limit=PAGE + 1, before=row_number(request.args.get("before")))
    shown = found[:PAGE]
    return render_template("ops/audit.html", events=shown, more=shown[-1].id if len(found) > PAGE else None)
