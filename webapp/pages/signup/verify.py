"""The link in the email: viewing it changes nothing; only the button confirms."""

from __future__ import annotations

from flask import Blueprint, make_response, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import lazy_gettext as _
from wtforms import PasswordField, StringField
from wtforms.validators import Length

from webapp.accounts import authentication, links, passwords, signup, users, verification
from webapp.accounts.identifiers import usernames
from webapp.accounts.links import AlreadyVerified, LinkExpired, LinkInvalid, VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.delivery import tasks
from webapp.pages.shared import link_cookie, rate_limits
from webapp.pages.shared.auth import sign_in
from webapp.pages.shared.forms import Form, read_username, strip, username_advice
from webapp.pages.shared.new_password import is_strong, measure, new_password_field
from webapp.pages.signup import waiting

blueprint = Blueprint("verify", __name__)


class ConfirmForm(link_cookie.LinkForm):
    username = StringField(_("New username"), filters=[strip])
    password = PasswordField(
        _("Your password"),
        validators=[Length(max=passwords.MAX_LENGTH, message=_("Please use at most %(max)d characters."))],
        render_kw={"autocomplete": "current-password"},
    )
    # The button that was pressed: "disown", or the main one.
    action = StringField()
    new_password = new_password_field(_("New password"), is_optional=True)


@blueprint.get("/verify/<link_token:token>")
def follow(token: str) -> ResponseReturnValue:
    """Move the token out of the address bar, history and logs. Mail scanners come here too: nothing is written."""
    try:
        links.check(links.find(token))
    except AlreadyVerified:
        pass
    except LinkExpired:
        return link_cookie.keep(_expired(), token, "/verify")
    except LinkInvalid:
        return _invalid()
    return link_cookie.keep(redirect(url_for("verify.show"), 303), token, "/verify")


@blueprint.get("/verify")
def show() -> ResponseReturnValue:
    try:
        proof = _opened()
        links.check(proof)
    except AlreadyVerified:
        return _already()
    except LinkExpired:
        return _expired()
    except LinkInvalid:
        return _invalid()
    return _page(proof, ConfirmForm(verification=str(proof.id)))


@blueprint.post("/verify")
def confirm() -> ResponseReturnValue:
    form = ConfirmForm()
    try:
        proof = _opened()
        links.check(proof)
        if not form.is_sent_for(proof):
            return _page(proof, form), form.status
        if form.action.data == "disown":
            verification.disown(proof.id)
            return render_template("verify/disowned.html", form=Form())
        holder, name = waiting.holder(proof.email_key), _chosen_name(form)
        # No transaction stays open while a password is hashed.
        db.session.commit()
        password_hash = _prove(form, proof, holder)
        if form.errors:
            return _page(proof, form), form.status
        user = verification.confirm(proof.id, holder=holder, username=name, password_hash=password_hash)
    except users.UsernameTaken:
        form.username.errors = [_("That username was just taken. Please choose another.")]
        return _page(_opened(), form, needs_username=True), form.status
    except usernames.UsernameInvalid as error:
        form.username.errors = [username_advice(error)]
        return _page(_opened(), form, needs_username=True), form.status
    except AlreadyVerified:
        return _already()
    except LinkExpired:
        return _expired()
    except LinkInvalid:
        return _invalid()
    response = make_response(sign_in(user, verification.leads_to(user)))
    link_cookie.drop(response, "/verify")
    return response


@blueprint.post("/verify/strength")
def strength() -> ResponseReturnValue:
    form = ConfirmForm()
    try:
        return measure(form, form.new_password, lambda: _words(_opened().user))
    except LinkInvalid:
        return _invalid()


@blueprint.post("/verify/renew")
def renew() -> ResponseReturnValue:
    """Send the expired link's email again, to the same address."""
    form = Form()
    try:
        proof = _opened()
        links.check(proof)
    except AlreadyVerified:
        return _already()
    except LinkExpired:
        if not form.validate():
            return _expired(form)
        rate_limits.spend("RATELIMIT_RESEND", str(proof.id))
        if email_id := signup.resend(proof.user):
            tasks.deliver_later(email_id)
        return redirect(url_for("verify.renewed"), 303)
    except LinkInvalid:
        return _invalid()
    return redirect(url_for("verify.show"), 303)


@blueprint.post("/verify/undo")
def undo() -> ResponseReturnValue:
    """Take back "I did not sign up"."""
    form = Form()
    if not form.validate():
        return render_template("verify/disowned.html", form=form), form.status
    try:
        proof = _opened()
        rate_limits.spend("RATELIMIT_RESEND", str(proof.id))
        verification.own_again(proof.id)
    except LinkInvalid:
        return _invalid()
    return redirect(url_for("verify.show"), 303)


@blueprint.get("/verify/renewed")
def renewed() -> str:
    return render_template("verify/renewed.html")


def _opened() -> VerifyEmail:
    """Return the row of the link that this browser opened last. Raises LinkInvalid."""
    return links.find(link_cookie.kept())


def _prove(form: ConfirmForm, proof: VerifyEmail, holder: User | None) -> str | None:
    """Check that the person who has the link also chose the password, or chooses one now.

    The link alone never opens an account: somebody else may have typed the address and chosen the password.
    Returns a new password's hash, if there is one; adds errors to the form.
    """
    user = proof.user
    if form.new_password.data:
        if not is_strong(form.new_password, _words(user)):
            return None
        return passwords.hash(form.new_password.data)
    if holder is not None:
        return None
    if not form.password.data:
        form.password.errors = [_("Please enter the password you chose, or set a new one below.")]
        return None
    with rate_limits.guessing(user.email_key, known_by=f"link:{proof.id}") as guess:
        guess.is_right = authentication.is_password(user, form.password.data)
    if not guess.is_right:
        form.password.errors = [_("That isn't the password for this signup. Try again, or set a new one below.")]
    return None


def _words(user: User) -> tuple[str, ...]:
    return user.username, user.full_name, user.email


def _chosen_name(form: ConfirmForm) -> str | None:
    return read_username(form.username.data) if form.username.data else None


def _page(proof: VerifyEmail, form: ConfirmForm, *, needs_username: bool = False) -> str:
    holder = waiting.holder(proof.email_key)
    return render_template(
        "verify/confirm.html",
        form=form,
        user=holder or proof.user,
        masked=link_cookie.mask(proof.user.email),
        needs_password=holder is None,
        needs_username=needs_username,
    )


def _already() -> ResponseReturnValue:
    return render_template("verify/already.html", leads_to=verification.leads_to(_opened().user))


def _expired(form: Form | None = None) -> ResponseReturnValue:
    return link_cookie.expired(url_for("verify.renew"), form)


def _invalid() -> ResponseReturnValue:
    return render_template("verify/invalid.html", is_waiting=waiting.held() is not None), 404
