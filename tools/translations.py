"""`make translations`: updates the catalogs with the strings in code and templates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po
from zxcvbn_rs_py import Suggestion
from zxcvbn_rs_py import Warning as Reason

from webapp.i18n import FOLDER
from webapp.paths import ROOT

METHODS = [("**.py", "python"), ("templates/**", "jinja2")]
# A template that cannot be parsed must not lose its strings silently.
OPTIONS = {"templates/**": {"silent": "false"}}
KEYWORDS = {
    "_": None,
    "gettext": None,
    "lazy_gettext": None,
    "ngettext": (1, 2),
    "lazy_ngettext": (1, 2),
}


def extract() -> Catalog:
    """Return every string that a person may read, including the password meter's."""
    messages = extract_from(ROOT / "webapp")
    for message in _of_the_meter():
        messages.add(message, locations=[("zxcvbn", 0)])
    return messages


def extract_from(*folders: Path) -> Catalog:
    """Return the strings of the code and templates in these folders."""
    messages = Catalog(project="signup", fuzzy=False)
    for folder in folders:
        for filename, _line, message, comments, context in extract_from_dir(
            folder, METHODS, OPTIONS, KEYWORDS, comment_tags=["Translators:"]
        ):
            messages.add(message, auto_comments=comments, context=context, locations=[(filename, 0)])
    return messages


def _of_the_meter() -> Iterator[str]:
    for kind in (Reason, Suggestion):
        # Not enums, so they cannot be iterated.
        yield from (str(value) for value in vars(kind).values() if isinstance(value, kind))


def read(path: Path) -> Catalog:
    with path.open("rb") as source:
        return read_po(source, path.stem)


def main() -> int:
    """Update each catalog; return how many strings are not translated yet."""
    missing = 0
    for path in sorted(FOLDER.glob("*.po")):
        messages = read(path)
        # A fuzzy match would usually be wrong, and look translated.
        messages.update(extract(), no_fuzzy_matching=True, update_creation_date=False)
        messages.obsolete.clear()
        with path.open("wb") as target:
            write_po(target, messages, width=100, omit_header=False, include_lineno=False)
        untranslated = [message for message in messages if message.id and not all(texts(message))]
        missing += len(untranslated)
        print(f"{path.relative_to(ROOT)}: {len(messages)} strings, {len(untranslated)} not translated")
        for message in untranslated:
            print(f"  {message.id!r}, of {', '.join(name for name, _line in message.locations)}")
    return missing


def texts(message: Message) -> list[str]:
    """Return the translation, in each of its plural forms."""
    string = message.string or ""
    return [string] if isinstance(string, str) else list(string)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
