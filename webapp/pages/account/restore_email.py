"""The link in the notice to a former address, which puts that address back. Viewing it changes nothing."""

from __future__ import annotations

import secrets

from flask import Blueprint, redirect, render_template, url_for
from flask.typing import ResponseReturnValue

from webapp.accounts import email_change, links, passwords
from webapp.accounts.email_change import AddressTaken
from webapp.accounts.links import AlreadyVerified, LinkInvalid, VerifyEmail
from webapp.db.base import db
from webapp.pages.shared import link_cookie

blueprint = Blueprint("put_back", __name__)

PATH = links.PATHS["revoke"]


@blueprint.get(f"{PATH}/<link_token:token>")
def follow(token: str) -> ResponseReturnValue:
    """Move the token out of the address bar, history and logs. Mail scanners come here too: nothing is written."""
    try:
        links.find(token, "revoke")
    except LinkInvalid as error:
        return _dead(error)
    return link_cookie.keep(redirect(url_for("put_back.show"), 303), token, PATH)


@blueprint.get(PATH)
def show() -> ResponseReturnValue:
    try:
        proof = _opened()
        email_change.check(proof)
    except (AlreadyVerified, LinkInvalid, AddressTaken) as error:
        return _dead(error)
    return _page(proof, link_cookie.LinkForm(verification=str(proof.id)))


@blueprint.post(PATH)
def act() -> ResponseReturnValue:
    form = link_cookie.LinkForm()
    try:
        proof = _opened()
        email_change.check(proof)
        if not form.is_sent_for(proof):
            return _page(proof, form), form.status
        # No transaction stays open while a password is hashed.
        db.session.commit()
        email_change.put_back(proof.id, passwords.hash(secrets.token_urlsafe(32)))
    except (AlreadyVerified, LinkInvalid, AddressTaken) as error:
        return _dead(error)
    return render_template(
        "account/put_back_done.html",
        address=link_cookie.mask(proof.email or ""),
        is_locked=proof.user.locked_at is not None,
    )


def _opened() -> VerifyEmail:
    """Return the row of the link that this browser opened last. Raises LinkInvalid."""
    return links.find(link_cookie.kept(), "revoke")


def _page(proof: VerifyEmail, form: link_cookie.LinkForm) -> str:
    return render_template("account/put_back.html", form=form, address=link_cookie.mask(proof.email or ""))


def _dead(error: Exception) -> ResponseReturnValue:
    return link_cookie.dead(error, "account/undo_link.html")
