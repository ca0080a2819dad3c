"""Why a password is easy to guess: all that zxcvbn says, in the person's language."""

from __future__ import annotations

from functools import cache

from flask_babel import force_locale, get_locale
from flask_babel import lazy_gettext as _

REASONS = (
    _("A word by itself is easy to guess."),
    _("Add another word or two."),
    _("Add another word or two. Uncommon words are better."),
    _("All-uppercase is almost as easy to guess as all-lowercase."),
    _("Avoid dates and years that are associated with you."),
    _("Avoid recent years."),
    _("Avoid repeated words and characters."),
    _("Avoid sequences."),
    _("Avoid years that are associated with you."),
    _("Capitalization doesn't help very much."),
    _("Common names and surnames are easy to guess."),
    _("Dates are often easy to guess."),
    _("Names and surnames by themselves are easy to guess."),
    _("No need for symbols, digits, or uppercase letters."),
    _("Predictable substitutions like '@' instead of 'a' don't help very much."),
    _("Recent years are easy to guess."),
    _('Repeats like "aaa" are easy to guess.'),
    _('Repeats like "abcabcabc" are only slightly harder to guess than "abc".'),
    _("Reversed words aren't much harder to guess."),
    _('Sequences like "abc" or "6543" are easy to guess.'),
    _("Short keyboard patterns are easy to guess."),
    _("Straight rows of keys are easy to guess."),
    _("This is a top-10 common password."),
    _("This is a top-100 common password."),
    _("This is a very common password."),
    _("This is similar to a commonly used password."),
    _("Use a few words, avoid common phrases."),
    _("Use a longer keyboard pattern with more turns."),
)


def reasons() -> dict[str, str]:
    """Return what each reason is in the page's language; nothing where that is the one they are written in."""
    return _reasons(str(get_locale()))


@cache
def _reasons(_locale: str) -> dict[str, str]:
    with force_locale("en"):
        written = [str(reason) for reason in REASONS]
    said = {source: str(reason) for source, reason in zip(written, REASONS, strict=True)}
    return {source: text for source, text in said.items() if source != text}
