"""Who gets in: admins, and viewers who only look; nobody else, signed in or not (403)."""

from __future__ import annotations

import math

from flask import Blueprint, abort, request
from flask_login import current_user

from webapp import audit
from webapp.monitoring.formatting import duration

blueprint = Blueprint("ops", __name__, url_prefix="/ops")
blueprint.add_app_template_filter(duration)


@blueprint.app_template_filter()
def within(seconds: float | None) -> str:
    """Say how long mails took at most; beyond what is counted apart, only that."""
    return "> 24 h" if seconds == math.inf else duration(seconds)


@blueprint.before_request
def let_operators_in() -> None:
    if not current_user.is_authenticated or not current_user.is_operator:
        abort(403)
    if request.method == "POST" and not current_user.is_admin:
        abort(403)
    audit.acting.set(f"user {current_user.id}")


@blueprint.teardown_request
def let_operator_go(_error: BaseException | None) -> None:
    audit.acting.set(None)
