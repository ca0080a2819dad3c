"""The browser and the system that a User-Agent header names."""

from __future__ import annotations

import re

from webapp import audit

# The first match counts: others also claim to be Chrome, Chrome to be Safari, and all of them Mozilla.
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
    # Macs, and iPads that request desktop pages.
    ("Mac", r"\bMacintosh\b"),
    ("ChromeOS", r"\bCrOS\b"),
    ("Linux", r"\bLinux\b"),
)
# The rest is not read: no real one is longer, and a pattern must not take long.
LONGEST = 500


def device() -> dict[str, str | None]:
    """Return the names that we have for the client's browser and system."""
    agent = audit.client_agent.get()
    return {"browser": browser(agent), "system": system(agent)}


def browser(user_agent: str) -> str | None:
    return _first(BROWSERS, user_agent)


def system(user_agent: str) -> str | None:
    return _first(SYSTEMS, user_agent)


def _first(known: tuple[tuple[str, str], ...], user_agent: str) -> str | None:
    said = user_agent[:LONGEST]
    return next((name for name, pattern in known if re.search(pattern, said)), None)
