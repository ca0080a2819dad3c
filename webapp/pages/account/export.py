"""Downloading everything that is stored about a person, for whoever proved recently to be that person."""

from __future__ import annotations

import json
from datetime import datetime

from flask import Blueprint, Response, render_template
from flask.typing import ResponseReturnValue
from flask_login import login_required

from webapp import audit
from webapp.accounts import account
from webapp.db.base import db
from webapp.pages.shared import rate_limits
from webapp.pages.shared.auth import AgainForm, current

blueprint = Blueprint("export", __name__)


@blueprint.get("/account/export")
@login_required
def show() -> str:
    return _page(AgainForm())


@blueprint.post("/account/export")
@login_required
def download() -> ResponseReturnValue:
    form = AgainForm()
    if not (form.validate() and form.proves()):
        return _page(form), form.status
    rate_limits.spend("RATELIMIT_ACCOUNT", current().key)
    audit.record("exported", current().id)
    db.session.commit()
    text = json.dumps(account.export(current()), ensure_ascii=False, indent=2, default=datetime.isoformat)
    return Response(
        f"{text}\n",
        mimetype="application/json",
        headers={"Content-Disposition": 'attachment; filename="account.json"'},
    )


def _page(form: AgainForm) -> str:
    return render_template("account/export.html", form=form)
