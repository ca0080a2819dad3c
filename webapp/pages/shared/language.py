"""The language of pages and forms: the one that the person chose, or else the one that the browser asks for."""

from __future__ import annotations

from typing import ClassVar

from flask import Flask, Response, current_app, request
from flask_babel import get_locale, gettext, ngettext
from flask_babel import lazy_gettext as _
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from webapp import i18n
from webapp.accounts.users import User

YEAR = 365 * 86400

# Longer than what any browser sends.
ACCEPTED_LONGEST = 200


def init_app(app: Flask) -> None:
    app.extensions["babel"].locale_selector = choose
    app.after_request(_remember_link)
    app.context_processor(lambda: {"lang": str(get_locale() or "en"), "languages": app.config["LANGUAGES"]})


def choose() -> str:
    # Werkzeug's best_match would prefer an exact "th" to an "en-GB" of higher quality.
    accepted = parse_accept_header(request.headers.get("Accept-Language", "")[:ACCEPTED_LONGEST], LanguageAccept)
    wished = [tag.lower().partition("-")[0] for tag, quality in accepted if quality]
    for language in (_chosen(), request.cookies.get(current_app.config["LANGUAGE_COOKIE_NAME"]), *wished):
        if is_spoken(language):
            return str(language)
    return i18n.offered(None)


def keep(user: User) -> None:
    """Use the language that the person chose here for emails; a browser's default is not a choice.

    The caller commits.
    """
    chosen = request.cookies.get(current_app.config["LANGUAGE_COOKIE_NAME"], "")
    if is_spoken(chosen):
        user.locale = chosen


def is_spoken(language: str | None) -> bool:
    return language in current_app.config["LANGUAGES"]


def remember(response: Response, language: str) -> None:
    """Show pages in this language in this browser from now on."""
    response.set_cookie(
        current_app.config["LANGUAGE_COOKIE_NAME"],
        language,
        max_age=YEAR,
        secure=current_app.config["SESSION_COOKIE_SECURE"],
        httponly=True,
        samesite="Lax",
    )


def _chosen() -> str | None:
    return request.args.get("language")


def _remember_link(response: Response) -> Response:
    chosen = _chosen()
    if chosen is not None and is_spoken(chosen):
        remember(response, chosen)
    return response


class Words:
    """WTForms' messages, in our words and languages."""

    SAID: ClassVar = {
        "Not a valid choice.": _("Please choose from the list."),
        "Not a valid date value.": _("Please enter a valid date."),
        "Not a valid integer value.": _("Please enter a whole number."),
        "Number must be between %(min)s and %(max)s.": _("Please enter a number from %(min)s to %(max)s."),
    }

    def gettext(self, text: str) -> str:
        return str(self.SAID.get(text) or gettext(text))

    def ngettext(self, one: str, many: str, number: int) -> str:
        return str(ngettext(one, many, number))
