"""A browser's own word for itself, in two words: which browser it is, and what it runs on."""

from __future__ import annotations

import re

# The first that fits: others say that they are Chrome, Chrome that it is Safari, and all that they are Mozilla.
BROWSERS = (
    ("Edge", r"\bEdg(?:e|A|iOS)?/"),
    ("Opera", r"\bOP(?:R|T|X)/|\bOpera\b"),
    ("Samsung Internet", r"\bSamsungBrowser/"),
    ("Vivaldi", r"\bVivaldi/"),
    ("Yandex", r"\bYaBrowser/"),
    ("LINE", r"\bLine/"),
    ("DuckDuckGo", r"\b(?:DuckDuckGo|Ddg)/"),
    ("Firefox", r"\b(?:Firefox|FxiOS)/"),
    ("Chrome", r"\b(?:Chrome|Chromium|CriOS)/"),
    ("Safari", r"\bVersion/\S+ (?:Mobile/\S+ )?Safari/"),
)
SYSTEMS = (
    ("iPhone", r"\biPhone\b"),
    ("iPad", r"\biPad\b"),
    ("Android", r"\bAndroid\b"),
    ("Windows", r"\bWindows\b"),
    # Macs, and iPads that ask for the pages of a desk.
    ("Mac", r"\bMacintosh\b"),
    ("ChromeOS", r"\bCrOS\b"),
    ("Linux", r"\bLinux\b"),
)
# What is read of it: nobody's is longer, and a pattern must not take long.
LONGEST = 500


def browser(user_agent: str) -> str | None:
    return _first(BROWSERS, user_agent)


def system(user_agent: str) -> str | None:
    return _first(SYSTEMS, user_agent)


def _first(known: tuple[tuple[str, str], ...], user_agent: str) -> str | None:
    said = user_agent[:LONGEST]
    return next((name for name, pattern in known if re.search(pattern, said)), None)
