"""Admins' actions: each first shows what it is about, on a page whose button carries it out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from flask import abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext, ngettext
from flask_babel import lazy_gettext as _
from sqlalchemy import select
from wtforms import HiddenField, IntegerField, StringField
from wtforms.validators import DataRequired, Length, NumberRange, Optional, ValidationError

from webapp import operations
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import relay, tasks
from webapp.monitoring import queries
from webapp.outbox import pause
from webapp.pages.ops import mails
from webapp.pages.ops.access import blueprint
from webapp.pages.shared.forms import Form, OneLine, WithAddress, email_field, strip

# How long one request works on many emails; then it shows its progress, and a button to continue.
WORK_SECONDS = 2.0


class ManyForm(Form):
    """The progress of an action on many emails: `after` is the last email done.

    It covers only emails from before its first page was `shown_at`: the filter matches others later, and in a database
    that was restored in the meantime a user's id may be somebody else's.
    """

    shown_at = HiddenField(filters=[strip])
    after = HiddenField(filters=[strip], validators=[Length(max=36)])
    done = IntegerField(validators=[Optional(), NumberRange(0, 2**31 - 1)])
    changed = IntegerField(validators=[Optional(), NumberRange(0, 2**31 - 1)])

    moment: datetime | None = None

    def validate_shown_at(self, field: HiddenField) -> None:
        self.moment = _moment(field.data) if field.data else None
        if field.data and self.moment is None:
            raise ValidationError(_("Please go back, reload the page and try again."))


class PauseForm(Form):
    reason = StringField(
        _("Reason"),
        filters=[strip],
        validators=[
            DataRequired(_("Please enter a reason, so that others know why email is paused.")),
            Length(max=pause.REASON_MAX, message=_("Please use at most %(max)d characters.")),
            OneLine(),
        ],
    )


class TestForm(WithAddress, Form):
    email = email_field(_("Send it to"))


@blueprint.get("/<any(retry, cancel):action>")
def confirm_many(action: str) -> ResponseReturnValue:
    which = mails.chosen() or abort(400)
    return _many(action, ManyForm(shown_at=_now()), total=queries.count(which))


@blueprint.post("/<any(retry, cancel):action>")
def do_many(action: str) -> ResponseReturnValue:
    which, form = mails.chosen() or abort(400), ManyForm()
    if not form.validate():
        form.shown_at.data = _now()
        return _many(action, form, total=queries.count(which)), form.status
    if form.moment is not None:
        which = replace(which, until=min(which.until or form.moment, form.moment))
    work = Work(action, mails.id_in(form.after.data), form.done.data or 0, form.changed.data or 0)
    deadline = time.monotonic() + WORK_SECONDS
    is_late = False
    # However slow the machine is, each request does some of them.
    while not is_late:
        chunk = queries.ids(which, limit=operations.CHUNK, after=work.after)
        work.do(chunk)
        if len(chunk) < operations.CHUNK:
            flash(work.told())
            return redirect(_back(), 303)
        is_late = time.monotonic() >= deadline
    # Emails that are done may no longer match: the total is what is done plus what is left.
    left = queries.count(which, after=work.after)
    form.after.data = str(work.after or "")
    return render_template("ops/progress.html", form=form, action=action, work=work, total=work.done + left, **_url())


@dataclass
class Work:
    """An action on many emails, and its progress."""

    action: str
    after: uuid.UUID | None
    done: int
    changed: int

    def do(self, chunk: Sequence[uuid.UUID]) -> None:
        if not chunk:
            return
        if self.action == "retry":
            retried = operations.retry(chunk)
            self.changed += retried.revived + retried.hurried
            if self.done == 0:
                # Hints must not flood the queue; the relay sends the rest.
                for email_id in chunk[: relay.BATCH]:
                    tasks.deliver_later(email_id)
        else:
            self.changed += operations.cancel(chunk)
        self.done += len(chunk)
        self.after = chunk[-1]

    def told(self) -> str:
        if self.action == "retry":
            return str(ngettext("Resending %(num)s email.", "Resending %(num)s emails.", self.changed))
        return str(ngettext("%(num)s email was canceled.", "%(num)s emails were canceled.", self.changed))


@blueprint.get("/pause")
def confirm_pause() -> str:
    return render_template("ops/pause.html", form=PauseForm())


@blueprint.post("/pause")
def pause_mail() -> ResponseReturnValue:
    form = PauseForm()
    if not form.validate():
        return render_template("ops/pause.html", form=form), form.status
    since = operations.pause_mail(form.reason.data)
    if since is not None:
        flash(gettext("All email is paused."), url_for("ops.resume_mail", since=since.isoformat()))
    else:
        flash(gettext("Already paused."))
    return redirect(url_for("ops.show"), 303)


@blueprint.get("/resume")
def confirm_resume() -> str:
    return render_template("ops/resume.html", form=Form(), now=queries.stats())


@blueprint.post("/resume")
def resume_mail() -> ResponseReturnValue:
    """Resume; with `since`, as Undo has it, only if it is still the pause that began then."""
    form, asked = Form(), request.args.get("since")
    if not form.validate():
        return render_template("ops/resume.html", form=form, now=queries.stats()), form.status
    since = _moment(asked) if asked else None
    if (asked is None or since is not None) and operations.resume_mail(since):
        flash(gettext("Email was resumed."))
    else:
        flash(gettext("Nothing was changed. That pause has already ended."))
    return redirect(url_for("ops.show"), 303)


@blueprint.get("/test")
def confirm_test() -> str:
    return render_template("ops/test.html", form=TestForm())


@blueprint.post("/test")
def send_test() -> ResponseReturnValue:
    form = TestForm()
    if not form.validate():
        return render_template("ops/test.html", form=form), form.status
    email_id = operations.post_test(form.address)
    tasks.deliver_later(email_id)
    flash(gettext("The test email is on its way. Reload this page to see what the mail server says."))
    return redirect(url_for("ops.show_mail", email_id=email_id), 303)


def _many(action: str, form: ManyForm, *, total: int) -> str:
    return render_template("ops/confirm.html", form=form, action=action, total=total, back=_back(), **_url())


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _now() -> str:
    now: datetime | None = db.session.scalar(select(db_now()))
    return now.isoformat() if now else ""


def _url() -> dict[str, str]:
    """Return the form's URL: the same emails as in this one."""
    return {"here": request.full_path.rstrip("?")}


def _back() -> str:
    """Return the URL of the email, or of the list, that this was about."""
    ids = request.args.getlist("id")
    if len(ids) == 1:
        return url_for("ops.show_mail", email_id=ids[0])
    query: dict[str, Any] = {} if ids else mails.query()
    return url_for("ops.show_mails", **query)
