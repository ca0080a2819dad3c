"""What `make pictures` does: the README's pictures, taken of the app as it runs."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browsers import chromium
from tests.conftest import SECRET, migrate
from tests.processes import consumer, free_port, gunicorn, wait_for_port
from tests.smtp_server import Server
from tests.test_codes import code_in
from tests.visitor import PASSWORD

DOCS = Path(__file__).resolve().parent / "docs"

MILLISECONDS = 250
LAST_MILLISECONDS = 3000
LEAVES_AFTER = 4
# Pictures are wider than the README shows them, so that they are sharp.
WIDTH, HEIGHT, SCALE = 1000, 700, 2
MOVING_WIDTH, MOVING_HEIGHT = 640, 760


def main() -> int:
    with Server() as smtp, running(smtp) as url, chromium() as browser:
        for scheme in ("light", "dark"):
            with browser.new_context(
                base_url=url,
                color_scheme=scheme,
                viewport={"width": WIDTH, "height": HEIGHT},
                device_scale_factor=SCALE,
            ) as context:
                page = context.new_page()
                page.goto("/")
                take(page, f"home-{scheme}")
                fill_in(page, f"mick.{scheme}@gmail.com")
                take(page, f"signup-{scheme}", full=True)
        moving(browser, url, smtp)
    return 0


@contextmanager
def running(smtp: Server) -> Iterator[str]:
    """Run web and worker on a database of their own; yields their URL."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        url = f"http://localhost:{port}"
        database = {"DATABASE_URL": f"sqlite:///{folder}/app.db"}
        environ = {
            "PATH": os.environ["PATH"],
            "TZ": "UTC",
            "SECRET_KEY": SECRET,
            "PUBLIC_URL": url,
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": str(smtp.port),
            "VERIFY_EMAIL_DELAY": str(LEAVES_AFTER),
            **database,
        }
        migrate(database)
        with gunicorn(environ, port), consumer(environ):
            wait_for_port(port)
            yield url


def fill_in(page: Page, address: str) -> None:
    page.goto("/signup")
    page.get_by_label("Username").fill(address.partition("@")[0])
    page.get_by_label("Full name").fill("Mick Example")
    page.get_by_label("E-mail address").fill(address)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    expect(page.locator(".meter .level")).not_to_be_empty()


def take(page: Page, name: str, *, full: bool = False) -> None:
    page.screenshot(path=DOCS / f"{name}.png", full_page=full, animations="disabled")
    print(f"docs/{name}.png")


def moving(browser: Browser, url: str, smtp: Server) -> None:
    """The waiting page, from signing up to being signed in."""
    frames: list[Image.Image] = []
    address = "mick@gmail.com"
    viewport = {"width": MOVING_WIDTH, "height": MOVING_HEIGHT}
    with browser.new_context(base_url=url, color_scheme="light", viewport=viewport) as context:  # type: ignore[arg-type]
        page = context.new_page()
        fill_in(page, address)
        page.get_by_role("button", name="Sign up").click()
        expect(page.get_by_role("heading", name="Check your mail")).to_be_visible()
        while not page.get_by_text("Sent ").first.is_visible():
            film(page, frames)
        for _ in range(6):
            film(page, frames)
        digits = code_in(smtp.wait_for(address)).replace(" ", "")
        field = page.get_by_label("Code from the mail")
        for digit in digits:
            field.press_sequentially(digit)
            film(page, frames)
        page.get_by_role("button", name="Confirm with the code").click()
        expect(page.get_by_role("heading", name="Welcome")).to_be_visible()
        film(page, frames)
    # Equal ones are one that stays longer.
    kept: list[Image.Image] = []
    durations: list[int] = []
    for frame in frames:
        if kept and frame.tobytes() == kept[-1].tobytes():
            durations[-1] += MILLISECONDS
        else:
            kept.append(frame)
            durations.append(MILLISECONDS)
    durations[-1] = LAST_MILLISECONDS
    path = DOCS / "waiting.webp"
    kept[0].save(path, save_all=True, append_images=kept[1:], duration=durations, loop=0, quality=80, method=6)
    print(f"docs/waiting.webp: {len(kept)} pictures, {path.stat().st_size // 1024} KB")


def film(page: Page, frames: list[Image.Image]) -> None:
    frames.append(Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB"))
    page.wait_for_timeout(MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
