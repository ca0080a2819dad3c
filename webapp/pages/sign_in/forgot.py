"""A forgotten password: one field, and the same answer whatever is typed into it."""

from __future__ import annotations

import time

from flask import Blueprint, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import get_locale
from flask_babel import lazy_gettext as _

from webapp.accounts import password_change
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.links import lives
from webapp.delivery import tasks
from webapp.emails.render import lifetime
from webapp.pages.shared import email_domains, mail_status, rate_limits, way_on
from webapp.pages.shared.forms import Form, WithAddress, email_field

blueprint = Blueprint("forgot", __name__)


class ForgotForm(WithAddress, Form):
    limit = "RATELIMIT_RESET"

    email = email_field(hint=_("The one you signed up with."))


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
    """Queue a link to this address, and redirect to the page that says so."""
    rate_limits.spend("RATELIMIT_RESET", rate_limits.network())
    tasks.deliver_later(password_change.ask(address, str(get_locale()), leads_to))
    session["forgot"] = address.mailed
    session["forgot_at"] = int(time.time())
    return redirect(url_for("forgot.sent") + way_on.query(leads_to), 303)


@blueprint.get("/forgot/sent")
def sent() -> ResponseReturnValue:
    """Say what was asked for; the cookie alone decides.

    The email's own status would tell whether the address has an account: without one, nothing is sent.
    """
    address = session.get("forgot")
    if address is None:
        return redirect(url_for("forgot.show"), 303)
    return render_template(
        "forgot/sent.html",
        form=Form(),
        address=address,
        resend_in=mail_status.resend_in(time.time() - session.get("forgot_at", 0)),
        suggestion=email_domains.suggestion(address),
        webmail=email_domains.webmail(address),
        link_lives=lifetime(lives("reset")),
    )


def _page(form: ForgotForm) -> str:
    return render_template("forgot/form.html", form=form)
