"""Who works, and who did what."""

from __future__ import annotations

from flask import render_template, request

from webapp import figures
from webapp.pages.ops.gate import blueprint

PAGE = 100


@blueprint.get("/workers")
def show_workers() -> str:
    return render_template(
        "ops/workers.html",
        workers=figures.workers(),
        in_hand=figures.in_hand(),
        start_worker=figures.START_WORKER,
    )


@blueprint.get("/audit")
def show_audit() -> str:
    before = request.args.get("before", type=int)
    found = figures.audited(limit=PAGE + 1, before=min(before, 2**31 - 1) if before else None)
    shown = found[:PAGE]
    return render_template("ops/audit.html", events=shown, more=shown[-1].id if len(found) > PAGE else None)
