"""The link for a forgotten password: viewing it changes nothing; only setting a new password signs in."""

from __future__ import annotations

from flask import Blueprint, flash, make_response, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from wtforms import StringField

from webapp.accounts import links, password_change, passwords, users, verification
from webapp.accounts.identifiers import email_addresses, usernames
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.links import AlreadyVerified, LinkExpired, LinkInvalid, VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.delivery import tasks
from webapp.pages.shared import link_cookie, rate_limits
from webapp.pages.shared.auth import sign_in
from webapp.pages.shared.forms import Form, read_username, strip, username_advice
from webapp.pages.shared.new_password import is_strong, measure, new_password_field
from webapp.pages.sign_in import forgot
from webapp.pages.signup import waiting

blueprint = Blueprint("reset", __name__)

PATH = links.PATHS["reset"]


class ResetForm(link_cookie.LinkForm):
    username = StringField(_("New username"), filters=[strip])
    password = new_password_field(_("New password"))

    def words(self, user: User) -> tuple[str, ...]:
        return self.username.data or user.username, user.full_name, user.email


@blueprint.get(f"{PATH}/<link_token:token>")
def follow(token: str) -> ResponseReturnValue:
    """Move the token out of the address bar, history and logs. Mail scanners come here too: nothing is written."""
    try:
        links.check(password_change.find(token))
    except LinkExpired:
        return link_cookie.keep(_expired(), token, PATH)
    except (AlreadyVerified, LinkInvalid):
        return _invalid()
    return link_cookie.keep(redirect(url_for("reset.show"), 303), token, PATH)


@blueprint.get(PATH)
def show() -> ResponseReturnValue:
    try:
        proof = _opened()
        links.check(proof)
    except LinkExpired:
        return _expired()
    except (AlreadyVerified, LinkInvalid):
        return _invalid()
    return _page(proof, ResetForm(verification=str(proof.id)))


@blueprint.post(PATH)
def submit() -> ResponseReturnValue:
    form = ResetForm()
    try:
        proof = _opened()
        links.check(proof)
        if not form.is_sent_for(proof):
            return _page(proof, form), form.status
        user, name = _user(proof), read_username(form.username.data) if form.username.data else None
        if not is_strong(form.password, form.words(user)):
            return _page(proof, form), form.status
        # No transaction stays open while a password is hashed.
        db.session.commit()
        user, notice = password_change.reset_password(
            proof.id, password_hash=passwords.hash(form.password.data), holder=user, username=name
        )
    except users.UsernameTaken:
        form.username.errors = [_("That username was just taken. Please choose another.")]
        return _page(_opened(), form), form.status
    except usernames.UsernameInvalid as error:
        form.username.errors = [username_advice(error)]
        return _page(_opened(), form), form.status
    except LinkExpired:
        return _expired()
    except (AlreadyVerified, LinkInvalid):
        return _invalid()
    tasks.deliver_later(notice)
    # Failed guesses at the former password must not keep the owner from using the new one.
    rate_limits.forgive(email_addresses.identifier_key(user.email), email_addresses.identifier_key(user.username))
    response = make_response(sign_in(user, proof.leads_to or verification.leads_to(user)))
    flash(gettext("Your password was changed. You were signed out everywhere else."))
    link_cookie.drop(response, PATH)
    return response


@blueprint.post(f"{PATH}/strength")
def strength() -> ResponseReturnValue:
    form = ResetForm()
    try:
        return measure(form, form.password, lambda: form.words(_user(_opened())))
    except LinkInvalid:
        return _invalid()


@blueprint.post(f"{PATH}/renew")
def renew() -> ResponseReturnValue:
    """Send a new link in place of the expired one."""
    form = Form()
    try:
        links.check(_opened())
    except LinkExpired as error:
        if not form.validate():
            return _expired(form)
        user = error.verification.user
        return forgot.send_to(Address(mailed=user.email, key=user.email_key), error.verification.leads_to)
    except (AlreadyVerified, LinkInvalid):
        return _invalid()
    return redirect(url_for("reset.show"), 303)


def _opened() -> VerifyEmail:
    """Return the row of the link that this browser opened last. Raises LinkInvalid."""
    return password_change.find(link_cookie.kept())


def _user(proof: VerifyEmail) -> User:
    """Return the user whose password is reset: of several signups with one address, this browser's."""
    return proof.user if proof.user.is_email_verified else waiting.holder(proof.email_key) or proof.user


def _page(proof: VerifyEmail, form: ResetForm) -> str:
    return render_template("reset/form.html", form=form, user=_user(proof), masked=link_cookie.mask(proof.user.email))


def _expired(form: Form | None = None) -> ResponseReturnValue:
    return link_cookie.expired(url_for("reset.renew"), form)


def _invalid() -> ResponseReturnValue:
    return render_template("reset/invalid.html"), 404
