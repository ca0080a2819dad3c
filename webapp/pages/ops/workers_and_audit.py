"""The workers, and the audit."""

from __future__ import annotations

from flask import render_template, request
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from wtforms import SelectField, StringField
from wtforms.fields.choices import SelectChoice

from webapp import audit
from webapp.db.base import row_number
from webapp.delivery import heartbeats
from webapp.monitoring import events, queries
from webapp.pages.ops import lists
from webapp.pages.ops.access import blueprint
from webapp.pages.ops.lists import DaysForm, short
from webapp.pages.shared.forms import OneLine, strip

PAGE = 100


class AuditForm(DaysForm):
    action = SelectField(_("Event"), validators=[short(30), OneLine()], validate_choice=False)
    actor = StringField(_("By"), filters=[strip], validators=[short(audit.ACTOR_MAX), OneLine()])

    def filter(self) -> events.Filter:
        return events.Filter(
            action=self.action.data or None, actor=self.actor.data or None, since=self.begin, until=self.end
        )


@blueprint.get("/workers")
def show_workers() -> str:
    return render_template(
        "ops/workers.html",
        workers=queries.workers(),
        in_hand=queries.in_hand(),
        start_worker=heartbeats.START_WORKER,
    )


@blueprint.get("/audit")
def show_audit() -> ResponseReturnValue:
    form = AuditForm(request.args)
    # The URL may also name an action that no recent event has.
    names = {*events.actions(), form.action.data or ""} - {""}
    form.action.choices = [SelectChoice("", _("any")), *(SelectChoice(name, name) for name in sorted(names))]
    if not form.validate():
        return render_template("ops/audit.html", form=form, events=[], query={}), 422
    which = form.filter()
    found = events.find(
        which,
        limit=PAGE + 1,
        beyond=row_number(request.args.get("before")),
        oldest_first=lists.is_oldest_first(),
    )
    shown = found[:PAGE]
    query = lists.pick(form.data)
    page = lists.page(
        PAGE,
        len(shown),
        events.count(which, most=lists.COUNTED + 1),
        query=query,
        more=shown[-1].id if len(found) > PAGE else None,
    )
    return render_template("ops/audit.html", form=form, events=shown, query=query, page=page)
