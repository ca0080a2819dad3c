"""The languages on offer, read from the translators' .po files; those in instance/ take precedence."""

from __future__ import annotations

from functools import cache, cached_property
from io import BytesIO
from pathlib import Path

import flask_babel
from babel import Locale, localedata
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from flask import current_app

from webapp import paths

FOLDER = Path(__file__).parent / "translations"

# The code is written in English, which therefore needs no catalog.
SHIPPED = ("en", *sorted(path.stem for path in FOLDER.glob("*.po")))


class Babel(flask_babel.Babel):
    @cached_property
    def domain_instance(self) -> flask_babel.Domain:
        return Catalogues()


class Catalogues(flask_babel.Domain):
    """Flask-Babel's domain without compiled files, which could be stale."""

    def get_translations(self) -> NullTranslations:
        return load(str(flask_babel.get_locale()))


def parse(raw: str) -> dict[str, str]:
    """Return the languages of a setting: their native names by code. Raises ValueError."""
    own = {path.stem for path in _own_folder().glob("*.po") if path.stem.isalpha() and localedata.exists(path.stem)}
    known = sorted({*SHIPPED, *own})
    codes = [part.strip() for part in raw.split(",")]
    for code in codes:
        if code not in known:
            raise ValueError(
                f"must be languages of {', '.join(known)}, not {code!r}; add one as instance/translations/<its code>.po"
            )
    return {code: str(Locale(code).get_display_name(code)).capitalize() for code in codes}


def offered(locale: str | None) -> str:
    """Return this language, or the first one if it is not (or no longer) offered."""
    languages: dict[str, str] = current_app.config["LANGUAGES"]
    return locale if locale in languages else next(iter(languages))


def load(locale: str) -> NullTranslations:
    """Return a language's translations: those in instance/ where they exist, otherwise ours."""
    return _load(locale, paths.INSTANCE)


@cache
def _load(locale: str, instance: Path) -> NullTranslations:
    found = NullTranslations()
    for path in filter(Path.exists, (catalogue(locale), instance / "translations" / f"{locale}.po")):
        with path.open("rb") as source:
            messages = read_po(source, locale)
        compiled = BytesIO()
        write_mo(compiled, messages)
        compiled.seek(0)
        found, others = Translations(compiled), found
        # For messages that the later catalog lacks.
        found.add_fallback(others)
    return found


def ago(seconds: float) -> str:
    """Return in words how long ago that was; never in the future, even if the database's clock is ahead of ours."""
    return relative(max(seconds, 0))


def relative(seconds: float) -> str:
    """Return in words how long ago that was, or if negative, in how long it will be. A second ahead is still now."""
    seconds = max(seconds, 0.5) if seconds > -1 else seconds
    return str(flask_babel.format_timedelta(-seconds, add_direction=True, threshold=1.2))


def catalogue(locale: str) -> Path:
    return FOLDER / f"{locale}.po"


def _own_folder() -> Path:
    return paths.INSTANCE / "translations"
