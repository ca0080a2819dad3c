"""Every page in any window size, in both themes, by keyboard, and for screen readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, Response

from harness.browsers import needs_chromium
from harness.smtp_server import Server
from tests.browser import sights
from tests.browser.tour import BY_ITSELF, Tour, touring
from tests.conftest import Embedded

# Pages look the same whatever the database.
pytestmark = [needs_chromium, pytest.mark.parametrize("backend", [Embedded.name], indirect=True)]


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[Flask]:
    with touring(environ, tmp_path) as app:
        yield app


# This test takes long.
@pytest.mark.timeout(300)
def test_every_page_is_valid_and_for_everybody(
    browser: Browser, app: Flask, send_due: Callable[[], None], smtp: Server
) -> None:
    """`make accessibility` has axe look at more combinations."""
    seen: list[str] = []
    problems: list[str] = []

    def look(name: str) -> None:
        seen.append(name)
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        if page.url == BY_ITSELF:
            found = [*sights.axe(page, *sights.OF_MAILS), *sights.width(page)]
        else:
            found = [*sights.axe(page), *sights.width(page), *sights.fingers(page), *sights.keyboard(page)]
        page.emulate_media(color_scheme="dark")
        # In dark mode only the colors differ.
        found += sights.axe(page, *sights.OF_COLOURS)
        problems.extend(f"{name}: {problem}" for problem in found)

    def read(response: Response) -> None:
        if response.request.is_navigation_request() and response.status not in {301, 302, 303}:
            problems.extend(f"{response.url}: {problem}" for problem in sights.markup(response.text()))

    with browser.new_context(base_url=app.config["PUBLIC_URL"]) as context:
        page = context.new_page()
        page.on("response", read)
        Tour(page, app, send_due, smtp, look).go()
    assert not problems, "\n".join(problems)
    assert len(seen) > 65
