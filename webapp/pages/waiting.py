"""The waiting page: what is happening to the mail of the signup that this browser holds, and what to do about it."""

from __future__ import annotations

import time
from datetime import timedelta

from flask import Blueprint, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from flask_babel import format_timedelta
from flask_babel import lazy_gettext as _
from flask_login import current_user
from wtforms import EmailField, StringField
from wtforms.validators import DataRequired, Length, ValidationError

from webapp import backlog, clock, codes, outbox, signup, tasks, users
from webapp.extensions import db
from webapp.outbox import OutgoingEmail
from webapp.pages import limits
from webapp.pages.forms import Form, strip, username_advice
from webapp.pages.signed_in import sign_in
from webapp.users import User
from webapp.verification import AlreadyVerified

blueprint = Blueprint("waiting", __name__)

# For this long a signup's browser may confirm without the password.
CONFIRM_SECONDS = 3600


class CodeForm(Form):
    code = StringField(
        _("Code from the mail"),
        filters=[strip],
        validators=[DataRequired(_("Please type the six digits.")), Length(max=20, message=_("That is too long."))],
        render_kw={"autocomplete": "one-time-code", "inputmode": "numeric"},
    )
    username = StringField(_("Another username"), filters=[strip])


class AddressForm(Form):
    email = EmailField(
        _("Right address"),
        filters=[strip],
        validators=[DataRequired(_("Please enter your e-mail address."))],
        render_kw={"autocomplete": "email"},
    )

    address: users.Address

    def validate_email(self, field: EmailField) -> None:
        try:
            self.address = users.parse_address(field.data)
        except users.AddressInvalid as error:
            raise ValidationError(_("Please check this address: it should look like name@example.com.")) from error


def remember(user: User) -> None:
    """Bind the pending signup to this browser, in place of any other."""
    session["signup"] = {"user_id": user.id, "at": int(time.time())}


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
    return _page(user)


@blueprint.post("/signup/resend")
def resend() -> ResponseReturnValue:
    user, form = pending_user(), Form()
    if user is None:
        return redirect(url_for("signup.show"), 303)
    if not form.validate():
        return _page(user, form), form.status
    limits.spend("RATELIMIT_RESEND", str(user.id))
    if not user.is_email_verified and (email := signup.resend(user)):
        tasks.deliver_later(email.id)
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
        email = signup.change_address(user, form.address)
    except signup.TooManyChanges:
        form.email.errors = [_("You changed the address several times already. Please sign up again.")]
        return _page(user, form), form.status
    except AlreadyVerified:
        email = None
    if email is not None:
        tasks.deliver_later(email.id)
    return redirect(url_for("waiting.show"), 303)


@blueprint.post("/signup/code")
def confirm_by_code() -> ResponseReturnValue:
    user, form = pending_user(), CodeForm()
    if user is None:
        return redirect(url_for("signup.show"), 303)
    if form.validate():
        try:
            chosen = users.normalize_username(form.username.data) if form.username.data else None
            verified = codes.confirm(user, form.code.data, username=chosen)
        except codes.CodeWrong:
            form.code.errors = [_("This is not the code, or it is too old. You can have a mail sent again.")]
        except codes.TooManyTries:
            form.code.errors = [_("That were too many wrong codes. Please follow the link in the mail instead.")]
        except users.UsernameTaken:
            form.username.errors = [_("Somebody else has this username by now. Please choose another.")]
        except users.UsernameInvalid as error:
            form.username.errors = [username_advice(error)]
        except AlreadyVerified:
            return redirect(url_for("waiting.show"), 303)
        else:
            sign_in(verified)
            return redirect(url_for("account.show"), 303)
    return _page(user, form), form.status


def _page(user: User, form: Form | None = None) -> str:
    """Show the page, with the one form that was sent and is wrong."""
    email = outbox.latest_for(user.id)
    return render_template(
        "waiting.html",
        user=user,
        state=_state(user, email),
        form=form or Form(),
        code_form=form if isinstance(form, CodeForm) else CodeForm(formdata=None),
        address_form=form if isinstance(form, AddressForm) else AddressForm(formdata=None),
        **_times(email),
    )


def _state(user: User, email: OutgoingEmail | None) -> str:
    if user.is_email_verified:
        return "verified"
    if email is None:
        return "none"
    if email.status == "queued":
        return "leaving" if email.attempts == 0 and email.last_error is None else "delayed"
    if email.last_error_class == backlog.CANCELED_BY_OPERATOR:
        return "failed"
    # Who else verified the address is nobody's business: a mail that was canceled for it looks sent.
    return {"sending": "sending", "sent": "sent", "dead": "failed", "canceled": "sent"}[email.status]


def _times(email: OutgoingEmail | None) -> dict[str, object]:
    if email is None:
        return {}
    seconds = (email.next_attempt_at - clock.now()).total_seconds()
    ago = clock.now() - email.finished_at if email.finished_at else timedelta()
    return {"seconds": max(0, round(seconds)), "ago": format_timedelta(-ago, add_direction=True, threshold=1.2)}
