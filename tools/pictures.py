"""`make pictures`: takes the screenshots in README and docs from the running app, and draws the home screen icon."""

from __future__ import annotations

import io
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, ViewportSize, expect

from harness.browsers import chromium
from harness.processes import consumer, flask, free_port, gunicorn, wait_for_port
from harness.smtp_server import Server
from harness.visitor import PASSWORD
from webapp import theme
from webapp.pages import assets
from webapp.paths import ROOT

DOCS = ROOT / "docs"

MILLISECONDS = 250
LAST_MILLISECONDS = 3000
LEAVES_AFTER = 4
# Pictures have more pixels than the pages show, so that they are sharp.
SCALE = 2
DESK = ViewportSize(width=1080, height=600)
PHONE = ViewportSize(width=375, height=812)
MOVING = ViewportSize(width=620, height=880)
GAP, ROUND, EDGE = 48, 56, "#8b847c"
HOME_SCREEN = ViewportSize(width=180, height=180)

# Two people with different names and addresses, so that each can verify.
PEOPLE = {"light": ("Mick Example", "mick@gmail.com"), "dark": ("Nina Example", "nina@gmail.com")}


def main() -> int:
    with Server() as smtp, running(smtp) as url, chromium() as browser:
        touch_icon(browser)
        for scheme, person in PEOPLE.items():

            @contextmanager
            def looking(size: ViewportSize, scale: int = SCALE, scheme: str = scheme) -> Iterator[Page]:
                with browser.new_context(
                    base_url=url,
                    color_scheme=scheme,  # type: ignore[arg-type]
                    viewport=size,
                    device_scale_factor=scale,
                ) as context:
                    yield context.new_page()

            with looking(DESK) as page:
                page.goto("/")
                keep(picture(page), f"home-{scheme}.png")
            with looking(PHONE) as page:
                keep(phones(page, *person, smtp), f"phones-{scheme}.png")
            with looking(MOVING, 1) as page:
                moving(page, *person, smtp, f"waiting-{scheme}.webp")
    return 0


@contextmanager
def running(smtp: Server) -> Iterator[str]:
    """Run web and worker with a database of their own; yield their URL."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        url = f"http://localhost:{port}"
        environ = {
            "PATH": os.environ["PATH"],
            "TZ": "UTC",
            "SECRET_KEY": secrets.token_urlsafe(32),
            "DATABASE_URL": f"sqlite:///{folder}/app.db",
            "PUBLIC_URL": url,
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": str(smtp.port),
            "VERIFY_EMAIL_DELAY": str(LEAVES_AFTER),
            # The same address is used twice within a minute.
            "RATELIMIT_ENABLED": "false",
        }
        with flask(environ, "db", "upgrade") as migration:
            if migration.popen.wait():
                sys.exit(migration.log)
        with gunicorn(environ, port), consumer(environ):
            wait_for_port(port)
            yield url


# Fields are found by name rather than by label, since labels change more often.


def fill_in(page: Page, name: str, address: str) -> None:
    page.goto("/signup")
    page.locator("[name=username]").fill(address.partition("@")[0])
    page.locator("[name=full_name]").fill(name)
    page.locator("[name=email]").fill(address)
    page.locator("[name=password]").fill(PASSWORD)
    expect(page.locator(".meter .level")).not_to_be_empty()


def submit(page: Page, action: str, leads_to: str) -> None:
    page.locator(f"form[action='{action}'] button[type=submit]").click()
    page.wait_for_url(leads_to)


def picture(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")


def keep(image: Image.Image, name: str) -> None:
    image.save(DOCS / name, optimize=True)
    print(f"docs/{name}: {(DOCS / name).stat().st_size // 1024} KB")


def touch_icon(browser: Browser) -> None:
    """Draw the home screen icon in shades of gray, for theme.touch_icon(). Phones round the corners."""
    square = theme.icon("#000000").replace(' rx="9"', "")
    with browser.new_context(viewport=HOME_SCREEN) as context:
        page = context.new_page()
        page.set_content(f'<body style="margin: 0">{square}</body>')
        drawn = picture(page).convert("L")
    icon = Image.frombytes("P", drawn.size, drawn.tobytes())
    icon.putpalette([shade for step in range(256) for shade in (step, step, step)])
    icon.save(assets.STATIC / "touch-icon.png")


def phones(page: Page, name: str, address: str, smtp: Server) -> Image.Image:
    """Signing up, waiting, and the email, side by side on a transparent background."""
    fill_in(page, name, address)
    screens = [picture(page)]
    submit(page, "/signup", "/signup/sent")
    expect(page.get_by_text("Sent ").first).to_be_visible(timeout=30_000)
    screens.append(picture(page))
    mail = smtp.wait_for(address)
    page.goto("about:blank")
    page.set_content(mail.html)
    screens.append(picture(page))
    # The next email to this address is for the animation.
    smtp.mails.clear()
    width, height = screens[0].size
    together = Image.new("RGBA", (3 * width + 2 * GAP, height))
    for number, screen in enumerate(screens):
        together.paste(screen, (number * (width + GAP), 0), rounded(screen.size))
        edge = (number * (width + GAP), 0, number * (width + GAP) + width - 1, height - 1)
        ImageDraw.Draw(together).rounded_rectangle(edge, ROUND, outline=EDGE, width=SCALE)
    return together


def rounded(size: tuple[int, int]) -> Image.Image:
    """Return a mask with rounded corners."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), ROUND, fill=255)
    return mask


def moving(page: Page, name: str, address: str, smtp: Server, file: str) -> None:
    """Make the animation of the waiting page, from signing up to being signed in."""
    frames: list[Image.Image] = []
    fill_in(page, name, address)
    submit(page, "/signup", "/signup/sent")
    while not page.get_by_text("Sent ").first.is_visible():
        film(page, frames)
    for _ in range(6):
        film(page, frames)
    field = page.locator("[name=code]")
    for digit in smtp.wait_for(address).code:
        field.press_sequentially(digit)
        film(page, frames)
    # The sixth digit submits the form.
    page.wait_for_url("**/account")
    film(page, frames)
    # Merge equal frames into one that is shown longer.
    kept: list[Image.Image] = []
    durations: list[int] = []
    for frame in frames:
        if kept and frame.tobytes() == kept[-1].tobytes():
            durations[-1] += MILLISECONDS
        else:
            kept.append(frame)
            durations.append(MILLISECONDS)
    durations[-1] = LAST_MILLISECONDS
    path = DOCS / file
    kept[0].save(path, save_all=True, append_images=kept[1:], duration=durations, loop=0, quality=80, method=6)
    print(f"docs/{file}: {len(kept)} pictures, {path.stat().st_size // 1024} KB")


def film(page: Page, frames: list[Image.Image]) -> None:
    frames.append(picture(page))
    page.wait_for_timeout(MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
