"""The waiting page: what is happening to the mail of the signup that this browser holds, and what to do about it."""

from __future__ import annotations

import time
import uuid

from flask import Blueprint, current_app, make_response, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import current_user
from wtforms import EmailField, StringField
from wtforms.validators import DataRequired, ValidationError

from webapp.accounts import codes, links, signup, users, verification
from webapp.accounts.identifiers import email_addresses, usernames
from webapp.accounts.links import AlreadyVerified
from webapp.accounts.users import User
from webapp.delivery import tasks
from webapp.pages.shared import email_domains, rate_limits, way_on
from webapp.pages.shared import mail_status as progress_page
from webapp.pages.shared.auth import sign_in
from webapp.pages.shared.forms import Form, code_field, read_username, strip, username_advice

blueprint = Blueprint("waiting", __name__)

# For this long a signup's browser may confirm without the password.
CONFIRM_SECONDS = 3600


class CodeForm(Form):
    code = code_field()
    username = StringField(_("New username"), filters=[strip])


class AddressForm(Form):
    limit = "RATELIMIT_SIGNUP"

    email = EmailField(
        _("Correct address"),
        filters=[strip],
        validators=[DataRequired(_("Please enter your email address."))],
        render_kw={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"},
    )

    address: email_addresses.Address

    def validate_email(self, field: EmailField) -> None:
        try:
            self.address = email_addresses.parse_address(field.data)
        except email_addresses.AddressInvalid as error:
            raise ValidationError(_("Please check this address: it should look like name@example.com.")) from error


def remember(signup_id: uuid.UUID) -> None:
    """Bind the pending signup to this browser, in place of any other."""
    session["signup"] = {"id": str(signup_id), "at": int(time.time())}


def held() -> uuid.UUID | None:
    """Return which signup this browser holds: asked of its cookie alone."""
    # Cookies from before this name held the number of a row, which may be somebody else's by now.
    signup_id = session.get("signup", {}).get("id")
    return uuid.UUID(signup_id) if signup_id else None


def pending_user() -> User | None:
    """Return who signed up in this browser and is not verified yet.

    Whoever is verified has the account, perhaps by another browser and password: this one has no part in it.
    """
    user = _signed_up()
    return user if user is not None and not user.is_email_verified else None


def holder(email_key: str) -> User | None:
    """Return whom this browser signed up with this address, if it was lately enough to need no password."""
    user = pending_user()
    if user is None or user.email_key != email_key or time.time() - session["signup"]["at"] >= CONFIRM_SECONDS:
        return None
    return user


def _lead_on() -> ResponseReturnValue:
    """Lead whoever waits for nothing to what became of the signup, or to another."""
    return redirect(url_for("waiting.show" if held() else "signup.show"), 303)


def _signed_up() -> User | None:
    signup_id = held()
    return signup.find(signup_id) if signup_id else None


@blueprint.get("/signup/sent")
def show() -> ResponseReturnValue:
    user = _signed_up()
    if user is None:
        # Its row was purged: there is nothing to wait for.
        session.pop("signup", None)
        return redirect(url_for("account.show" if current_user.is_authenticated else "signup.show"), 303)
    if user.is_email_verified:
        return render_template("verified_elsewhere.html", leads_to=verification.leads_to(user))
    return _page(user)


@blueprint.post("/signup/resend")
def resend() -> ResponseReturnValue:
    user, form = pending_user(), Form()
    if user is None:
        return _lead_on()
    if not form.validate():
        return _page(user, form), form.status
    rate_limits.spend("RATELIMIT_RESEND", str(held()))
    if email_id := signup.resend(user):
        tasks.deliver_later(email_id)
    return redirect(url_for("waiting.show"), 303)


@blueprint.post("/signup/email")
def change_address() -> ResponseReturnValue:
    user, form = pending_user(), AddressForm()
    if user is None:
        return _lead_on()
    if not form.validate():
        return _page(user, form), form.status
    # Each address that one can have mailed counts, however it is asked for.
    rate_limits.spend("RATELIMIT_SIGNUP", rate_limits.network())
    try:
        email_id = signup.change_address(
            user, form.address, rate_limits.spent("RATELIMIT_SIGNUP", rate_limits.network())
        )
    except signup.TooManyChanges:
        form.email.errors = [_("You've changed the address several times already. Please sign up again.")]
        return _page(user, form), form.status
    except AlreadyVerified:
        email_id = None
    if email_id is not None:
        tasks.deliver_later(email_id)
    return redirect(url_for("waiting.show"), 303)


@blueprint.post("/signup/code")
def confirm_by_code() -> ResponseReturnValue:
    user, form = pending_user(), CodeForm()
    if user is None:
        return _lead_on()
    if form.validate():
        try:
            chosen = read_username(form.username.data) if form.username.data else None
            verified = codes.confirm(user, form.code.data, username=chosen)
        except codes.CodeWrong:
            form.code.errors = [_("That code is wrong or has expired. Check it, or send a new one.")]
        except codes.TooManyTries:
            form.code.errors = [_("Too many wrong codes. Use the link in the email instead.")]
        except users.UsernameTaken:
            form.username.errors = [_("That username was just taken. Please choose another.")]
        except usernames.UsernameInvalid as error:
            form.username.errors = [username_advice(error)]
        except AlreadyVerified:
            return redirect(url_for("waiting.show"), 303)
        else:
            sign_in(verified)
            return way_on.follow(verification.leads_to(verified))
    return _page(user, form), form.status


@blueprint.get("/signup/sent/progress")
def progress() -> ResponseReturnValue:
    """The part of the page that moves, for the script that asks for it again and again."""
    user = pending_user()
    if user is None:
        # Another tab or browser went on: so does this one.
        response = make_response("")
        response.headers["HX-Redirect"] = url_for("waiting.show")
        return response
    return render_template("progress.html", form=Form(), **_shown(user))


def _page(user: User, form: Form | None = None) -> str:
    """Show the page, with the one form that was sent and is wrong."""
    return render_template(
        "waiting.html",
        form=form or Form(),
        code_form=form if isinstance(form, CodeForm) else CodeForm(formdata=None),
        address_form=form if isinstance(form, AddressForm) else AddressForm(formdata=None, email=user.email),
        **_shown(user),
    )


def _shown(user: User) -> dict[str, object]:
    domain = user.email.rpartition("@")[2]
    progress = progress_page.of(links.latest_mail(user))
    return {
        "user": user,
        "progress": progress,
        "suggestion": email_domains.suggestion(user.email),
        "webmail": webmail(user.email),
        "domain": domain,
    }


def webmail(address: str) -> tuple[str, str] | None:
    """Return name and URL of where this address is read in a browser."""
    if current_app.config["APP_ENV"] == "development":
        return gettext("the mailbox"), url_for("mailbox.show")
    return email_domains.webmail(address)
