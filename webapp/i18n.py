"""The languages we speak, read from their catalogues as translators write them."""

from __future__ import annotations

from functools import cache, cached_property
from io import BytesIO
from pathlib import Path

import flask_babel
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations

FOLDER = Path(__file__).parent / "translations"

# By their own names. English is what the code is written in, and has no catalogue.
LANGUAGES = {"en": "English", "th": "ไทย"}


class Babel(flask_babel.Babel):
    @cached_property
    def domain_instance(self) -> flask_babel.Domain:
        return Catalogues()


class Catalogues(flask_babel.Domain):
    """Flask-Babel's domain without compiled files, which could be stale."""

    def get_translations(self) -> NullTranslations:
        return load(str(flask_babel.get_locale()))


@cache
def load(locale: str) -> NullTranslations:
    path = catalogue(locale)
    if not path.exists():
        return NullTranslations()
    with path.open("rb") as source:
        messages = read_po(source, locale)
    compiled = BytesIO()
    write_mo(compiled, messages)
    compiled.seek(0)
    return Translations(compiled)


def ago(seconds: float) -> str:
    """Return in words how long ago that was; just now, when the database's clock runs ahead of ours."""
    return str(flask_babel.format_timedelta(-max(seconds, 0.5), add_direction=True, threshold=1.2))


def catalogue(locale: str) -> Path:
    return FOLDER / f"{locale}.po"
