"""The waiting page: what is happening to the email of this browser's signup, and what to do about it."""

from __future__ import annotations

import time
import uuid

from flask import Blueprint, make_response, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import current_user
from wtforms import StringField

from webapp.accounts import codes, links, signup, users, verification
from webapp.accounts.identifiers import usernames
from webapp.accounts.links import AlreadyVerified
from webapp.accounts.users import User
from webapp.delivery import tasks
from webapp.pages.shared import email_domains, rate_limits
from webapp.pages.shared import mail_status as progress_page
from webapp.pages.shared.auth import sign_in
from webapp.pages.shared.forms import (
    Form,
    WithNewAddress,
    code_field,
    email_field,
    read_username,
    strip,
    username_advice,
)

blueprint = Blueprint("waiting", __name__)

# How long a signup's browser may confirm without the password.
CONFIRM_SECONDS = 3600


class CodeForm(Form):
    code = code_field()
    username = StringField(_("New username"), filters=[strip])


class AddressForm(WithNewAddress, Form):
    limit = "RATELIMIT_SIGNUP"

    email = email_field(_("Correct address"))


def remember(signup_id: uuid.UUID) -> None:
    """Bind the pending signup to this browser, in place of any other."""
    session["signup"] = {"id": str(signup_id), "at": int(time.time())}


def held() -> uuid.UUID | None:
    """Return the id of this browser's signup, from its cookie alone."""
    # Cookies of old releases have another key, with a row's number that may be somebody else's by now.
    signup_id = session.get("signup", {}).get("id")
    return uuid.UUID(signup_id) if signup_id else None


def pending_user() -> User | None:
    """Return the user who signed up in this browser and is not verified yet.

    Once verified, the account may belong to another browser and another password: this one has no claim to it.
    """
    user = _signed_up()
    return user if user is not None and not user.is_email_verified else None


def holder(email_key: str) -> User | None:
    """Return the user whom this browser signed up with this address, if recently enough to need no password."""
    user = pending_user()
    if user is None or user.email_key != email_key or time.time() - session["signup"]["at"] >= CONFIRM_SECONDS:
        return None
    return user


def _lead_on() -> ResponseReturnValue:
    """Redirect a person who is not waiting to what became of the signup, or to a new one."""
    return redirect(url_for("waiting.show" if held() else "signup.show"), 303)


def _signed_up() -> User | None:
    signup_id = held()
    return signup.find(signup_id) if signup_id else None


@blueprint.get("/signup/sent")
def show() -> ResponseReturnValue:
    user = _signed_up()
    if user is None:
        # The user was purged: there is nothing to wait for.
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
    # Every address that a person can make us send to counts, whichever form it comes from.
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
            return sign_in(verified, verification.leads_to(verified))
    return _page(user, form), form.status


@blueprint.get("/signup/sent/progress")
def progress() -> ResponseReturnValue:
    """Return the part of the page that changes, for the script that polls it."""
    user = pending_user()
    if user is None:
        if (verified := _signed_up()) and verification.is_recent(verified):
            # Perhaps by another tab, whose answer is about to sign this browser in: the next look will tell.
            return "", 204
        # Another tab or browser has moved on: so does this one.
        response = make_response("")
        response.headers["HX-Redirect"] = url_for("waiting.show")
        return response
    return render_template("progress.html", form=Form(), **_shown(user))


def _page(user: User, form: Form | None = None) -> str:
    """Show the page, with the form that was sent and has errors."""
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
        "address": user.email,
        "progress": progress,
        "begun": gettext("You signed up."),
        "to_do": gettext("Click the button in the email, or enter the code below."),
        "done": gettext("You're in."),
        "here": url_for("waiting.show"),
        "moves_at": url_for("waiting.progress"),
        "resends_at": url_for("waiting.resend"),
        "suggestion": email_domains.suggestion(user.email),
        "webmail": email_domains.webmail(user.email),
        "domain": domain,
    }
