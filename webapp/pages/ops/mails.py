"""The mails: found by what is known of them, each with its story."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from typing import Any

from flask import Response, abort, render_template, request
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from werkzeug.datastructures import MultiDict
from wtforms import DateField, Form, IntegerField, SelectField, StringField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import Length, NumberRange, Optional

from webapp.accounts.identifiers import email_addresses
from webapp.db.base import NUMBER_MAX, db
from webapp.emails.render import sample
from webapp.monitoring import queries
from webapp.monitoring.formatting import plain
from webapp.monitoring.queries import Filter
from webapp.outbox.kinds import TEMPLATES
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.pages.ops.access import blueprint
from webapp.pages.shared.forms import OneLine, Words, strip

PAGE = 50
CHOSEN_MAX = 200

# Never a token, a link, a code or a body: none of them is in the tables, and a lease's token is nobody's business.
DETAILS = (
    *("id", "message_id", "template", "locale", "user_id", "priority", "attempts", "max_attempts", "lease_expiries"),
    *("in_doubt", "locked_by", "lease_until", "last_error_class", "last_smtp_code", "last_error", "created_at"),
    *("next_attempt_at", "expires_at", "sent_at", "finished_at", "request_id"),
)

# The sample styles itself; it neither runs, fetches nor leads anywhere.
SAMPLE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'; sandbox"


def _choices(names: Iterable[str]) -> list[SelectChoice]:
    return [SelectChoice("", _("any")), *(SelectChoice(name, name) for name in names)]


def _short(length: int) -> Length:
    return Length(max=length, message=_("Please use at most %(max)d characters."))


class FilterForm(Form):
    """Which mails are meant; of no method but GET, so that it can be a link."""

    class Meta:  # noqa: D106 - WTForms' name for a form's options
        def get_translations(self, _form: Form) -> Words:
            return Words()

    status = SelectField(_("State"), choices=_choices(queries.STATUSES))
    template = SelectField(_("Email"), choices=_choices(TEMPLATES))
    address = StringField(_("Address"), filters=[strip], validators=[_short(email_addresses.EMAIL_MAX), OneLine()])
    code = IntegerField(_("SMTP code"), validators=[Optional(), NumberRange(200, 599)])
    user = IntegerField(_("User ID"), validators=[Optional(), NumberRange(1, NUMBER_MAX)])
    since = DateField(_("From (UTC)"), validators=[Optional()])
    until = DateField(_("To (UTC)"), validators=[Optional()])
    # Not typed: by links alone.
    error = StringField(filters=[strip], validators=[_short(50), OneLine()])

    def filter(self, **more: Any) -> Filter:
        return Filter(
            status=self.status.data or None,
            template=self.template.data or None,
            address=self.address.data or None,
            code=self.code.data,
            user_id=self.user.data,
            since=_begin(self.since.data) if self.since.data else None,
            until=_begin(self.until.data + timedelta(days=1)) if self.until.data else None,
            error=self.error.data or None,
            **more,
        )


def _begin(day: Any) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)


def asked() -> FilterForm:
    """Return the filter in this address; what is missing means any."""
    return FilterForm(MultiDict({"status": "", "template": ""} | request.args.to_dict()))


def query() -> dict[str, str]:
    """Return the filter in this address, for another one: nothing else, since it would mean other things there."""
    return {name: value for name, value in request.args.items() if value and name in asked().data}


@blueprint.get("/mails")
def show_mails() -> ResponseReturnValue:
    form = asked()
    if not form.validate():
        return render_template("ops/mails.html", form=form, mails=[], query={}), 422
    found = queries.mails(form.filter(), limit=PAGE + 1, before=id_in(request.args.get("before")))
    shown = found[:PAGE]
    return render_template(
        "ops/mails.html",
        form=form,
        mails=shown,
        query=query(),
        more=shown[-1].id if len(found) > PAGE else None,
    )


@blueprint.get("/mails/<uuid:email_id>")
def show_mail(email_id: uuid.UUID) -> str:
    mail = db.session.get(OutgoingEmail, email_id) or abort(404)
    return render_template(
        "ops/mail.html",
        mail=mail,
        attempts=queries.attempts_at(email_id),
        details=[(name.replace("_", " "), plain(getattr(mail, name))) for name in DETAILS],
        has_sample=mail.template in TEMPLATES,
    )


@blueprint.get("/samples/<template>")
def show_sample(template: str) -> Response:
    """Show a template with sample data: never anybody's link or code."""
    if template not in TEMPLATES:
        abort(404)
    response = Response(sample(template).html, mimetype="text/html")
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
    """Return the mails that an action is about: those ticked, or all that the filter finds; nothing if it is wrong."""
    ticked = [id_in(text) for text in request.args.getlist("id")]
    if ticked:
        ids = tuple(email_id for email_id in ticked if email_id is not None)
        return Filter(ids=ids, is_open=True) if len(ids) == len(ticked) <= CHOSEN_MAX else None
    form = asked()
    return form.filter(is_open=True) if form.validate() else None
