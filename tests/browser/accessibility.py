"""`make accessibility`: axe on every page, in each theme, language and window size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from flask import Flask
from playwright.sync_api import ViewportSize

from harness.browsers import chromium
from harness.smtp_server import Server
from tests.browser import sights
from tests.browser.tour import BY_ITSELF, Tour, touring
from tests.conftest import LANGUAGES, Embedded

WINDOWS: dict[str, ViewportSize] = {"desktop": {"width": 1280, "height": 720}, "phone": {"width": 375, "height": 667}}

pytestmark = [
    pytest.mark.parametrize("backend", [Embedded.name], indirect=True),
    pytest.mark.timeout(600),
]


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[Flask]:
    with touring(environ, tmp_path) as app:
        yield app


@pytest.mark.parametrize("colours", ["none", "active"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_axe_finds_nothing(
    app: Flask,
    send_due: Callable[[], None],
    smtp: Server,
    language: str,
    window: str,
    colours: Literal["active", "none"],
) -> None:
    problems: list[str] = []

    def look(name: str) -> None:
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce", forced_colors=colours)
            only = sights.OF_MAILS if page.url == BY_ITSELF else ()
            problems.extend(f"{name}, {scheme}: {found}" for found in sights.axe(page, *only))
        assert page.locator("html").get_attribute("lang") == language, name

    with (
        chromium() as browser,
        browser.new_context(base_url=app.config["PUBLIC_URL"], locale=language, viewport=WINDOWS[window]) as context,
    ):
        page = context.new_page()
        Tour(page, app, send_due, smtp, look).go()
    assert not problems, "\n".join(problems)
