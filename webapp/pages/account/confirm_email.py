"""The link that confirms a changed address: viewing it changes nothing, and it signs nobody in."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from wtforms import StringField

from webapp.accounts import email_change, links, verification
from webapp.accounts.email_change import AddressTaken
from webapp.accounts.links import AlreadyVerified, LinkInvalid, VerifyEmail
from webapp.pages.account import email
from webapp.pages.shared import link_cookie
from webapp.pages.shared.auth import current_password_field, knows_password

blueprint = Blueprint("confirm_address", __name__)

PATH = links.PATHS["change"]


class ConfirmForm(link_cookie.LinkForm):
    # The button that was pressed: "disown", or the main one.
    action = StringField()


class PasswordForm(ConfirmForm):
    password = current_password_field()


@blueprint.get(f"{PATH}/<link_token:token>")
def follow(token: str) -> ResponseReturnValue:
    """Move the token out of the address bar, history and logs. Mail scanners come here too: nothing is written."""
    try:
        links.find(token, "change")
    except LinkInvalid as error:
        return _dead(error)
    return link_cookie.keep(redirect(url_for("confirm_address.show"), 303), token, PATH)


@blueprint.get(PATH)
def show() -> ResponseReturnValue:
    try:
        proof = _opened()
        email_change.check(proof)
    except (AlreadyVerified, LinkInvalid, AddressTaken) as error:
        return _dead(error)
    return _page(proof, _form(proof, verification=str(proof.id)))


@blueprint.post(PATH)
def confirm() -> ResponseReturnValue:
    try:
        proof = _opened()
        email_change.check(proof)
        form = _form(proof)
        if form.action.data == "disown":
            # Disowning does not take the account's password.
            form = ConfirmForm()
        if not form.is_sent_for(proof):
            return _page(proof, form), form.status
        if form.action.data == "disown":
            verification.disown(proof.id)
            return render_template("account/disowned.html")
        if isinstance(form, PasswordForm) and not knows_password(proof.user, form.password, link=proof.id):
            return _page(proof, form), form.status
        return email.changed(email_change.confirm(proof.id), proof.leads_to)
    except (AlreadyVerified, LinkInvalid, AddressTaken) as error:
        return _dead(error)


def _opened() -> VerifyEmail:
    """Return the row of the link that this browser opened last. Raises LinkInvalid."""
    return links.find(link_cookie.kept(), "change")


def _form(proof: VerifyEmail, **values: str) -> ConfirmForm:
    """Return the form: the link alone changes no account, so it takes the password or a signed-in browser too."""
    is_own = current_user.is_authenticated and current_user.id == proof.user_id
    return (ConfirmForm if is_own else PasswordForm)(**values)


def _page(proof: VerifyEmail, form: ConfirmForm) -> str:
    return render_template("account/confirm_email.html", form=form, address=link_cookie.mask(proof.email or ""))


def _dead(error: Exception) -> ResponseReturnValue:
    return link_cookie.dead(error, "account/link.html")
