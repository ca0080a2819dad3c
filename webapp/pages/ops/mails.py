"""The emails: a filtered list, and each one with its history."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from flask import Response, abort, render_template, request
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from werkzeug.datastructures import MultiDict
from wtforms import IntegerField, SelectField, StringField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import NumberRange, Optional
from wtforms.widgets import TextInput

from webapp.accounts.identifiers import email_addresses
from webapp.db.base import NUMBER_MAX, db
from webapp.emails import render
from webapp.monitoring import queries
from webapp.monitoring.formatting import plain
from webapp.monitoring.queries import Filter
from webapp.outbox.kinds import TEMPLATES
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.pages.ops import lists
from webapp.pages.ops.access import blueprint
from webapp.pages.ops.lists import DaysForm, short
from webapp.pages.shared.forms import OneLine, strip

PAGE = 50
CHOSEN_MAX = 200

# Never a token, link, code or body: the tables contain none, except the lease's token, which is left out.
DETAILS = (
    *("id", "message_id", "template", "locale", "user_id", "priority", "attempts", "max_attempts", "lease_expiries"),
    *("in_doubt", "locked_by", "lease_until", "last_error_class", "last_smtp_code", "last_error", "created_at"),
    *("next_attempt_at", "expires_at", "sent_at", "finished_at", "request_id"),
)

# A field of type `number` would not show what was typed by mistake.
AS_TYPED: dict[str, Any] = {"widget": TextInput(), "render_kw": {"inputmode": "numeric"}}

# The sample has its own styles, but cannot run or fetch anything, and its links lead nowhere.
SAMPLE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"


def _choices(names: Iterable[str]) -> list[SelectChoice]:
    return [SelectChoice("", _("any")), *(SelectChoice(name, name) for name in names)]


class FilterForm(DaysForm):
    status = SelectField(_("State"), choices=_choices(queries.STATUSES))
    template = SelectField(_("Email"), choices=_choices(TEMPLATES))
    address = StringField(_("Address"), filters=[strip], validators=[short(email_addresses.EMAIL_MAX), OneLine()])
    code = IntegerField(_("SMTP code"), validators=[Optional(), NumberRange(200, 599)], **AS_TYPED)
    user = IntegerField(_("User ID"), validators=[Optional(), NumberRange(1, NUMBER_MAX)], **AS_TYPED)
    # Set only by links.
    error = StringField(filters=[strip], validators=[short(50), OneLine()])

    def filter(self, **more: Any) -> Filter:
        return Filter(
            status=self.status.data or None,
            template=self.template.data or None,
            address=self.address.data or None,
            code=self.code.data,
            user_id=self.user.data,
            error=self.error.data or None,
            since=self.begin,
            until=self.end,
            **more,
        )


def asked() -> FilterForm:
    """Return the filter in this URL; a missing field means any."""
    return FilterForm(MultiDict({"status": "", "template": ""} | request.args.to_dict()))


def query() -> dict[str, str]:
    """Return this URL's filter for another URL, without other parameters, which would mean something else there."""
    return lists.pick(asked().data)


@blueprint.get("/mails")
def show_mails() -> ResponseReturnValue:
    form = asked()
    if not form.validate():
        return render_template("ops/mails.html", form=form, mails=[], query={}), 422
    which = form.filter()
    found = queries.mails(
        which, limit=PAGE + 1, beyond=id_in(request.args.get("before")), oldest_first=lists.is_oldest_first()
    )
    shown = found[:PAGE]
    page = lists.page(
        PAGE,
        len(shown),
        queries.count(which, most=lists.COUNTED + 1),
        query=query(),
        more=shown[-1].id if len(found) > PAGE else None,
    )
    return render_template("ops/mails.html", form=form, mails=shown, query=query(), page=page)


@blueprint.get("/mails/<uuid:email_id>")
def show_mail(email_id: uuid.UUID) -> str:
    mail = db.session.get(OutgoingEmail, email_id) or abort(404)
    return render_template(
        "ops/mail.html",
        mail=mail,
        attempts=queries.attempts_at(email_id),
        details=[(name.replace("_", " "), known) for name in DETAILS if (known := plain(getattr(mail, name)))],
        has_sample=mail.template in TEMPLATES,
    )


@blueprint.get("/samples/<template>")
def show_sample(template: str) -> Response:
    """Show a template with sample data, never with a real link or code."""
    if template not in TEMPLATES:
        abort(404)
    response = Response(render.document(render.sample(template)), mimetype="text/html")
    response.headers["Content-Security-Policy"] = SAMPLE_POLICY
    return response


@blueprint.get("/dead")
def show_dead() -> str:
    return render_template("ops/dead.html", reasons=queries.reasons())


def id_in(text: str | None) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if text else None
    except ValueError:
        return None


def chosen() -> Filter | None:
    """Return the emails that an action is about: those ticked, or all that the filter matches; None if invalid."""
    ticked = [id_in(text) for text in request.args.getlist("id")]
    if ticked:
        ids = tuple(email_id for email_id in ticked if email_id is not None)
        return Filter(ids=ids, is_open=True) if len(ids) == len(ticked) <= CHOSEN_MAX else None
    form = asked()
    return form.filter(is_open=True) if form.validate() else None
