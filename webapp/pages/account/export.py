"""All that is kept of a person, to download."""

from __future__ import annotations

import json
from datetime import datetime

from flask import Blueprint, Response, render_template
from flask.typing import ResponseReturnValue
from flask_login import login_required

from webapp import audit
from webapp.accounts import account
from webapp.db.base import db
from webapp.pages.shared.auth import current
from webapp.pages.shared.forms import Form

blueprint = Blueprint("export", __name__)


@blueprint.get("/account/export")
@login_required
def show() -> str:
    return render_template("account/export.html", form=Form())


@blueprint.post("/account/export")
@login_required
def download() -> ResponseReturnValue:
    form = Form()
    if not form.validate():
        return render_template("account/export.html", form=form), form.status
    audit.record("exported", current().id)
    db.session.commit()
    text = json.dumps(account.export(current()), ensure_ascii=False, indent=2, default=datetime.isoformat)
    return Response(
        f"{text}\n",
        mimetype="application/json",
        headers={"Content-Disposition": 'attachment; filename="account.json"'},
    )
