"""A link's token in a cookie that only the link's own pages get: not in the address bar, history or logs."""

from __future__ import annotations

from flask import Flask, Response, current_app, make_response, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.routing import BaseConverter
from wtforms import HiddenField

from webapp.accounts.email_change import AddressTaken
from webapp.accounts.links import AlreadyVerified, LinkExpired, VerifyEmail
from webapp.pages.shared.forms import Form

COOKIE_SECONDS = 3600

# Ends of sentences, brackets and quotes around a link, which may be copied together with it.
NOT_OF_THE_LINK = "/.,;:!?)>]}'\""


class TokenConverter(BaseConverter):
    """A link's token in a path, without anything that was pasted after it."""

    regex = "[^/]+/?"
    part_isolating = False

    def to_python(self, value: str) -> str:
        return value.rstrip(NOT_OF_THE_LINK)


def init_app(app: Flask) -> None:
    """Register the converter; must run before the links' pages are registered."""
    app.url_map.converters["link_token"] = TokenConverter


class LinkForm(Form):
    # The page's own link: another one may have been opened in another tab.
    verification = HiddenField()

    def is_sent_for(self, proof: VerifyEmail) -> bool:
        """Return whether it is valid and from this link's page; otherwise it can now be shown on that page."""
        is_sent = bool(self.validate()) and self.verification.data == str(proof.id)
        self.verification.data = str(proof.id)
        return is_sent


def keep(page: ResponseReturnValue, token: str, path: str) -> Response:
    """Answer with this page, and keep the token in a cookie for this path."""
    response = make_response(page)
    _set(response, token, path, COOKIE_SECONDS)
    return response


def kept() -> str:
    return request.cookies.get(current_app.config["LINK_COOKIE_NAME"], "")


def dead(error: Exception, template: str) -> ResponseReturnValue:
    """Say why an account's link no longer works, by the error from its check."""
    states = {AlreadyVerified: ("used", 200), LinkExpired: ("expired", 410), AddressTaken: ("taken", 409)}
    state, status = states.get(type(error), ("invalid", 404))
    return render_template(template, state=state), status


def expired(renew: str, form: Form | None = None) -> ResponseReturnValue:
    """Offer a new link in place of an expired one; `renew` is the URL to request it."""
    return render_template("expired_link.html", form=form or Form(), renew=renew), 410


def drop(response: Response, path: str) -> None:
    # As it was set: a browser ignores what would delete a `__Secure-` cookie without saying Secure.
    _set(response, "", path, seconds=0)


def _set(response: Response, token: str, path: str, seconds: float) -> None:
    response.set_cookie(
        current_app.config["LINK_COOKIE_NAME"],
        token,
        max_age=int(seconds),
        path=path,
        secure=current_app.config["SESSION_COOKIE_SECURE"],
        httponly=True,
        samesite="Lax",
    )


def mask(address: str) -> str:
    """Return enough of an address for its owner to recognize it."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}{'•' * min(6, max(1, len(local) - 1))}{at}{domain}"
