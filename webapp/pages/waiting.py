"""The waiting page: what is happening to the mail of the signup that this browser holds, and what to do about it."""

from __future__ import annotations

import time

from flask import Blueprint, current_app, make_response, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_login import current_user
from wtforms import EmailField, StringField
from wtforms.validators import DataRequired, ValidationError

from webapp import codes, signup, tasks, usernames, users, verification
from webapp.extensions import db
from webapp.pages import language, limits, mail_hosts
from webapp.pages import progress as progress_page
from webapp.pages.forms import Form, code_field, read_username, strip, username_advice
from webapp.pages.progress import Progress
from webapp.pages.signed_in import sign_in
from webapp.users import User
from webapp.verification import AlreadyVerified

blueprint = Blueprint("waiting", __name__)

# For this long a signup's browser may confirm without the password.
CONFIRM_SECONDS = 3600


class CodeForm(Form):
    code = code_field()
    username = StringField(_("Another username"), filters=[strip])


class AddressForm(Form):
    email = EmailField(
        _("Right address"),
        filters=[strip],
        validators=[DataRequired(_("Please enter your e-mail address."))],
        render_kw={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"},
    )

    address: users.Address

    def validate_email(self, field: EmailField) -> None:
        try:
            self.address = users.parse_address(field.data)
        except users.AddressInvalid as error:
            raise ValidationError(_("Please check this address: it should look like name@example.com.")) from error


def remember(user_id: int) -> None:
    """Bind the pending signup to this browser, in place of any other."""
    session["signup"] = {"user_id": user_id, "at": int(time.time())}


def has_signed_up() -> bool:
    """Return whether this browser holds a signup: asked of its cookie alone."""
    return "signup" in session


def pending_user() -> User | None:
    """Return who signed up in this browser."""
    held = session.get("signup")
    return db.session.get(User, held["user_id"]) if held else None


def may_confirm(user: User) -> bool:
    """Return whether this browser signed this user up, lately enough to confirm without the password."""
    held = session.get("signup")
    return held is not None and held["user_id"] == user.id and time.time() - held["at"] < CONFIRM_SECONDS


def holder(email_key: str) -> User | None:
    """Return whom this browser signed up with this address, if it was lately enough to need no password."""
    user = pending_user()
    if user is None or user.email_key != email_key or user.is_email_verified or not may_confirm(user):
        return None
    return user


@blueprint.get("/signup/sent")
def show() -> ResponseReturnValue:
    user = pending_user()
    if user is None:
        # Its row was purged: there is nothing to wait for.
        session.pop("signup", None)
        return redirect(url_for("account.show" if current_user.is_authenticated else "signup.show"), 303)
    language.keep(user)
    return _page(user)


@blueprint.post("/signup/resend")
def resend() -> ResponseReturnValue:
    user, form = pending_user(), Form()
    if user is None:
        return redirect(url_for("signup.show"), 303)
    if not form.validate():
        return _page(user, form), form.status
    limits.spend("RATELIMIT_RESEND", str(user.id))
    if not user.is_email_verified and (email_id := signup.resend(user)):
        tasks.deliver_later(email_id)
    return redirect(url_for("waiting.show"), 303)


@blueprint.post("/signup/email")
def change_address() -> ResponseReturnValue:
    user, form = pending_user(), AddressForm()
    if user is None:
        return redirect(url_for("signup.show"), 303)
    if not form.validate():
        return _page(user, form), form.status
    # Each address that one can have mailed counts, however it is asked for.
    limits.spend("RATELIMIT_SIGNUP", limits.network())
    try:
        email_id = signup.change_address(user, form.address)
    except signup.TooManyChanges:
        form.email.errors = [_("You changed the address several times already. Please sign up again.")]
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
        return redirect(url_for("signup.show"), 303)
    if form.validate():
        try:
            chosen = read_username(form.username.data) if form.username.data else None
            verified = codes.confirm(user, form.code.data, username=chosen)
        except codes.CodeWrong:
            form.code.errors = [_("This is not the code, or it is too old. You can have a mail sent again.")]
        except codes.TooManyTries:
            form.code.errors = [_("That were too many wrong codes. Please follow the link in the mail instead.")]
        except users.UsernameTaken:
            form.username.errors = [_("Somebody else has this username by now. Please choose another.")]
        except usernames.UsernameInvalid as error:
            form.username.errors = [username_advice(error)]
        except AlreadyVerified:
            return redirect(url_for("waiting.show"), 303)
        else:
            sign_in(verified)
            return redirect(url_for("account.show"), 303)
    return _page(user, form), form.status


@blueprint.get("/signup/sent/progress")
def progress() -> ResponseReturnValue:
    """The part of the page that moves, for the script that asks for it again and again."""
    user = pending_user()
    if user is None:
        # Another tab of this browser went on: so does this one.
        response = make_response("")
        response.headers["HX-Redirect"] = url_for("waiting.show")
        return response
    seen = progress_of(user)
    response = make_response(render_template("progress.html", form=Form(), **_shown(user, seen)))
    if seen.state == "verified":
        response.headers["HX-Refresh"] = "true"
    return response


def progress_of(user: User) -> Progress:
    return progress_page.of(verification.latest_mail(user), is_verified=user.is_email_verified)


def _page(user: User, form: Form | None = None) -> str:
    """Show the page, with the one form that was sent and is wrong."""
    return render_template(
        "waiting.html",
        form=form or Form(),
        code_form=form if isinstance(form, CodeForm) else CodeForm(formdata=None),
        address_form=form if isinstance(form, AddressForm) else AddressForm(formdata=None),
        suggestion=mail_hosts.suggestion(user.email),
        **_shown(user, progress_of(user)),
    )


def _shown(user: User, progress: Progress) -> dict[str, object]:
    domain = user.email.rpartition("@")[2]
    return {"user": user, "progress": progress, "webmail": webmail(user.email), "domain": domain}


def webmail(address: str) -> tuple[str, str] | None:
    """Return name and URL of where this address is read in a browser."""
    if current_app.config["APP_ENV"] == "development":
        return gettext("the mailbox"), url_for("mailbox.show")
    return mail_hosts.webmail(address)
