"""The operator pages with scripts: they update themselves, and disturb nothing that somebody is working on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect

from harness.browsers import needs_chromium
from harness.visitor import PASSWORD
from tests.browser.test_scripts import look_away
from tests.browser.tour import OPERATOR, touring
from tests.conftest import Embedded
from tests.factories import change, claim, make_signup
from webapp.accounts import passwords, roles
from webapp.accounts.identifiers import email_addresses
from webapp.db.base import db
from webapp.delivery import circuit_breaker, heartbeats

pytestmark = [needs_chromium, pytest.mark.parametrize("backend", [Embedded.name], indirect=True)]

# As when somebody returns to the page: it asks at once.
LOOK = 'document.dispatchEvent(new Event("visibilitychange"))'


@pytest.fixture
def app(environ: dict[str, str], tmp_path: Path) -> Iterator[Flask]:
    with touring(environ, tmp_path) as app:
        yield app


@pytest.fixture
def page(browser: Browser, app: Flask) -> Iterator[Page]:
    """An operator's browser, with access to the clipboard."""
    with app.app_context():
        address = email_addresses.parse_address(f"{OPERATOR}@example.com")
        roles.create(address, username=OPERATOR, password_hash=passwords.hash(PASSWORD), role="admin")
    with browser.new_context(base_url=app.config["PUBLIC_URL"]) as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.goto("/login")
        page.locator("#identifier").fill(OPERATOR)
        page.locator("#password").fill(PASSWORD)
        with page.expect_navigation():
            page.locator("main [type=submit]").click()
        yield page


def sign_up(app: Flask, name: str) -> str:
    return str(make_signup(app, username=name, address=f"{name}@example.com"))


def look(page: Page) -> None:
    """Make the page poll once and apply the answer; it does not poll on its own before that."""
    for _ in range(2):
        with page.expect_response("**/ops**"):
            page.evaluate(LOOK)


def test_a_list_updates_itself_but_for_what_is_ticked(page: Page, app: Flask) -> None:
    email_id = sign_up(app, "ann")
    page.goto("/ops/mails")
    rows = page.locator("tbody tr")
    page.get_by_label("Select all on this page").check()
    expect(page.get_by_label("Select the email to ann@example.com")).to_be_checked()
    expect(page.get_by_text("Selected: 1")).to_be_visible()
    sign_up(app, "bob")
    look(page)
    expect(rows).to_have_count(1)
    expect(page.get_by_label("Select the email to ann@example.com")).to_be_checked()
    page.get_by_label("Select the email to ann@example.com").uncheck()
    page.get_by_role("link", name=email_id[:8]).focus()
    look(page)
    expect(rows).to_have_count(2)
    expect(page.get_by_role("link", name=email_id[:8])).to_be_focused()
    page.get_by_role("button", name="Copy the ID").last.click()
    expect(page.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == email_id
    # It does not poll while hidden, or once it is switched off.
    look_away(page)
    page.evaluate(LOOK)
    assert page.evaluate("asked") == []
    page.evaluate("delete document.hidden")
    look(page)
    assert page.evaluate("asked") != []
    # At once, so that no question comes between.
    page.get_by_role("switch").evaluate("one => { asked.length = 0; one.click(); }")
    page.evaluate(LOOK)
    assert page.evaluate("asked") == []
    page.reload()
    expect(page.get_by_role("switch")).not_to_be_checked()


LISTS = ("/ops/mails", "/ops/users", "/ops/audit")

# What a finger presses, and is too small for it.
SMALL = """(all) => all.filter((one) => one.checkVisibility() && !one.matches(":disabled"))
    .map((one) => [one.closest("label.tick, label.live") ?? one, one])
    .filter(([target]) => target.getBoundingClientRect().height < 44)
    .map(([, one]) => one.outerHTML)"""


def test_lists_keep_their_heads_in_sight_and_are_for_fingers_on_a_phone(page: Page, app: Flask) -> None:
    for number in range(40):
        sign_up(app, f"ann{number}")
    page.goto("/ops/users")
    expect(page.get_by_role("columnheader", name="Signed up")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("columnheader").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Signed up")).to_have_attribute("aria-sort", "ascending")
    for path in LISTS:
        page.goto(path)
        page.set_viewport_size({"width": 1280, "height": 500})
        page.evaluate("scrollTo(0, 600)")
        assert page.locator("thead th").evaluate_all("(all) => all.every((one) => one.getBoundingClientRect().y < 1)")
        page.set_viewport_size({"width": 375, "height": 667})
        assert page.locator("main :is(a, button, summary, input:not([type=hidden]), select)").evaluate_all(SMALL) == []


# Lists whose cells don't say what their column heads say, or that are wider than a phone.
STRAYED = """(lists) => lists.map((one) => {
    const heads = [...one.querySelectorAll("thead th")].map((head) => head.querySelector("input")
        ? null : head.firstElementChild?.firstChild.textContent.trim() ?? head.textContent.trim());
    const cells = [...one.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.dataset.name));
    return [one.scrollWidth - one.clientWidth, heads, cells];
})"""


def test_rows_are_stacked_on_a_phone_and_each_value_has_its_name(page: Page, app: Flask) -> None:
    dead = make_signup(app, username="ann", address="a-name-as-long-as-some-people-have@example.com")
    refused = {"last_error_class": "RecipientRefused", "last_smtp_code": 550, "last_error": "5.1.1 no such user " * 5}
    change(app, dead, status="dead", **refused)
    sign_up(app, "bob")
    assert claim(app, "worker-7.internal.example.com:4242:a1b2c3")
    with app.app_context():
        heartbeats.beat("worker-7.internal.example.com:4242:a1b2c3")
        db.session.commit()
    page.set_viewport_size({"width": 375, "height": 667})
    for path in ("/ops/mails", "/ops/dead", "/ops/users", "/ops/users/1", "/ops/users/2", "/ops/workers", "/ops/audit"):
        page.goto(path)
        for wider_by, heads, rows in page.locator(".rows:has(thead)").evaluate_all(STRAYED):
            assert wider_by == 0, path
            assert rows, path
            assert all(row == heads for row in rows), (path, heads, rows)
    page.goto("/ops/users")
    expect(page.get_by_title("Oldest first")).to_be_visible()
    page.goto("/ops/mails")
    expect(page.get_by_label("Select all on this page")).to_be_visible()


def test_the_overview_tells_an_outage_and_a_plots_values_by_keyboard(page: Page, app: Flask) -> None:
    sign_up(app, "ann")
    page.goto("/ops")
    server = page.locator(".health > div", has_text="Mail server")
    expect(server).to_contain_text("up")
    column = page.get_by_role("radio").first
    values = page.locator(".values").nth(1)
    expect(values).to_have_css("opacity", "0")
    column.focus()
    page.keyboard.press("ArrowRight")
    expect(values).to_have_css("opacity", "1")
    expect(values).to_contain_text("Accepted 0")
    with app.app_context():
        circuit_breaker.trip("connect: nobody answers at smtp.example.com")
        db.session.commit()
    look(page)
    expect(server).to_contain_text("down")
    # The selected element is still there, and nothing covers anything.
    expect(values).to_have_css("opacity", "1")
    for width in (375, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        boxes = [box for tile in page.locator(".tiles > *").all() if (box := tile.bounding_box())]
        for number, one in enumerate(boxes):
            for other in boxes[:number]:
                is_beside = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
                assert is_beside or one["y"] >= other["y"] + other["height"], (width, one, other)
        inside = ".tiles > * :is(dt, dd, small, .pill, .figure)"
        assert page.locator(inside).evaluate_all(
            "(all) => all.every((one) => one.scrollWidth <= one.closest('.tiles > *').clientWidth)"
        )
