"""A real browser, and our app served from this process."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import make_server

from harness.visitor import ASKED_FOR

# The first one is Chromium without what only a window needs, and takes a third less time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="no Chromium here: apt install chromium-headless-shell"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM, "CI has Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                # The sandbox doesn't work as root; the others keep Chromium from calling home.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


def fill_in_own(page: Page) -> None:
    """Fill in what own/fields.py requires of those who sign up."""
    for name, text in ASKED_FOR.items():
        page.locator(f"#{name}").fill(text)


@contextmanager
def served(app: Flask, port: int) -> Iterator[None]:
    """Serve the app from a thread, until the block ends."""
    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
