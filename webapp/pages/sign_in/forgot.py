"""A forgotten password: one field, and one answer, whatever is typed into it."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import get_locale
from flask_babel import lazy_gettext as _
from wtforms import EmailField
from wtforms.validators import DataRequired

from webapp.accounts import password_change
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.links import lives
from webapp.delivery import tasks
from webapp.emails.render import lifetime
from webapp.pages.shared import email_domains, rate_limits, way_on
from webapp.pages.shared.forms import Form, read_address, strip
from webapp.pages.signup import waiting

blueprint = Blueprint("forgot", __name__)


class ForgotForm(Form):
    limit = "RATELIMIT_RESET"

    email = EmailField(
        _("Email address"),
        filters=[strip],
        validators=[DataRequired(_("Please enter your email address."))],
        description=_("The one you signed up with."),
        render_kw={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"},
    )

    address: email_addresses.Address

    def validate_email(self, field: EmailField) -> None:
        self.address = read_address(field)


@blueprint.get("/forgot")
def show() -> str:
    return _page(ForgotForm())


@blueprint.post("/forgot")
def submit() -> ResponseReturnValue:
    form = ForgotForm()
    if form.validate():
        return send_to(form.address, way_on.asked())
    return _page(form), form.status


def send_to(address: email_addresses.Address, leads_to: str | None) -> ResponseReturnValue:
    """Promise a link to this address, and lead to the page that says so."""
    rate_limits.spend("RATELIMIT_RESET", rate_limits.network())
    tasks.deliver_later(password_change.ask(address, str(get_locale()), leads_to))
    session["forgot"] = address.mailed
    return redirect(url_for("forgot.sent"), 303)


@blueprint.get("/forgot/sent")
def sent() -> ResponseReturnValue:
    address = session.get("forgot")
    if address is None:
        return redirect(url_for("forgot.show"), 303)
    return render_template(
        "forgot/sent.html",
        address=address,
        suggestion=email_domains.suggestion(address),
        webmail=waiting.webmail(address),
        link_lives=lifetime(lives("reset")),
    )


def _page(form: ForgotForm) -> str:
    return render_template("forgot/form.html", form=form)
