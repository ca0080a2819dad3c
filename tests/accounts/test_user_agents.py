"""Browsers, by their user agents."""

from __future__ import annotations

import pytest

from webapp.accounts import user_agents

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
SAYS = {
    "Mozilla/5.0 (Android 14; Mobile; rv:130.0) Gecko/130.0 Firefox/130.0": ("Firefox", "Android"),
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT} Chrome/126.0 Safari/537.36 Edg/126.0": ("Edge", "Windows"),
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) {WEBKIT} Version/17.5 Mobile/15E148 Safari/604.1": (
        "Safari",
        "iPhone",
    ),
    f"Mozilla/5.0 (iPad; CPU OS 17_5 like Mac OS X) {WEBKIT} CriOS/126.0 Mobile/15E148 Safari/604.1": (
        "Chrome",
        "iPad",
    ),
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {WEBKIT} Chrome/126.0 Safari/537.36": ("Chrome", "Mac"),
    f"Mozilla/5.0 (Linux; Android 13) {WEBKIT} SamsungBrowser/25.0 Chrome/121.0 Mobile Safari/537.36": (
        "Samsung Internet",
        "Android",
    ),
    f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Chrome/126.0 Safari/537.36 OPR/112.0": ("Opera", "Linux"),
    f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/126.0 Safari/537.36": ("Chrome", "ChromeOS"),
    "Firefox/" + "x" * 100_000: ("Firefox", None),
    "curl/8.5.0": (None, None),
    "": (None, None),
}


@pytest.mark.parametrize("user_agent", SAYS, ids=lambda said: said[:40])
def test_a_browser_is_known_by_what_it_says(user_agent: str) -> None:
    assert (user_agents.browser(user_agent), user_agents.system(user_agent)) == SAYS[user_agent]
