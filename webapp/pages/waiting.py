"""The waiting page: what is happening to the mail of the signup that this browser holds."""

from __future__ import annotations

import time
from datetime import timedelta

from flask import Blueprint, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import format_timedelta
from flask_login import current_user

from webapp import clock, outbox, signup, tasks
from webapp.extensions import db
from webapp.outbox import OutgoingEmail
from webapp.pages.forms import Form
from webapp.users import User

blueprint = Blueprint("waiting", __name__)

# For this long a signup's browser may confirm without the password.
CONFIRM_SECONDS = 3600


def remember(user: User) -> None:
    """Bind the pending signup to this browser, in place of any other."""
    session["signup"] = {"user_id": user.id, "at": int(time.time())}


def forget() -> None:
    session.pop("signup", None)


def pending_user() -> User | None:
    """Return who signed up in this browser."""
    held = session.get("signup")
    return db.session.get(User, held["user_id"]) if held else None


def may_confirm(user: User) -> bool:
    """Return whether this browser signed this user up, lately enough to confirm without the password."""
    held = session.get("signup")
    return held is not None and held["user_id"] == user.id and time.time() - held["at"] < CONFIRM_SECONDS


@blueprint.get("/signup/sent")
def show() -> ResponseReturnValue:
    user = pending_user()
    if user is None:
        return redirect(url_for("account.show" if current_user.is_authenticated else "signup.show"), 303)
    email = outbox.latest_for(user.id)
    return render_template("waiting.html", user=user, form=Form(), state=_state(user, email), **_times(email))


@blueprint.post("/signup/resend")
def resend() -> ResponseReturnValue:
    user = pending_user()
    form = Form()
    if user is None:
        return redirect(url_for("signup.show"), 303)
    if not form.validate():
        email = outbox.latest_for(user.id)
        state = _state(user, email)
        return render_template("waiting.html", user=user, form=form, state=state, **_times(email)), form.status
    if not user.is_email_verified and (email := signup.resend(user)):
        tasks.deliver_later(email.id)
    return redirect(url_for("waiting.show"), 303)


def _state(user: User, email: OutgoingEmail | None) -> str:
    if user.is_email_verified:
        return "verified"
    if email is None:
        return "none"
    if email.status == "queued":
        return "leaving" if email.attempts == 0 and email.last_error is None else "delayed"
    # Who else verified the address is nobody's business: a mail that was canceled for it looks sent.
    return {"sending": "sending", "sent": "sent", "dead": "failed", "canceled": "sent"}[email.status]


def _times(email: OutgoingEmail | None) -> dict[str, object]:
    if email is None:
        return {}
    seconds = (email.next_attempt_at - clock.now()).total_seconds()
    ago = clock.now() - email.finished_at if email.finished_at else timedelta()
    return {"seconds": max(0, round(seconds)), "ago": format_timedelta(-ago, add_direction=True, threshold=1.2)}
