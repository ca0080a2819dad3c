"""`make lint`: your own words that some language lacks, and translations in instance/ of what nobody says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages import Catalog
from dotenv import dotenv_values

from tools import translations
from webapp import i18n
from webapp.paths import ROOT


def problems(root: Path, languages: str) -> Iterator[str]:
    own = translations.extract_from(root / "own", root / "instance")
    said = {message.id for catalog in (own, translations.extract()) for message in catalog}
    for code in i18n.parse(languages):
        path = root / "instance" / "translations" / f"{code}.po"
        yours = translations.read(path) if path.exists() else Catalog(code)
        for message in yours:
            if message.id not in said:
                yield f"{path.relative_to(root)}: neither your code nor ours says {message.id!r}"
        ours = i18n.catalogue(code)
        known = translated(yours) | (translated(translations.read(ours)) if ours.exists() else set())
        for message in own:
            if code != "en" and message.id and message.id not in known:
                yield f"{path.relative_to(root)}: translate {message.id!r}, or take {code} out of LANGUAGES in .env"


def translated(catalog: Catalog) -> set[object]:
    return {message.id for message in catalog if all(translations.texts(message)) and not message.fuzzy}


def main() -> int:
    """Return the exit code."""
    settings = {**dotenv_values(ROOT / ".env"), **os.environ}
    found = list(problems(ROOT, settings.get("LANGUAGES") or ",".join(i18n.SHIPPED)))
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
