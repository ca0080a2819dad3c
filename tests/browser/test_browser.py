"""Signing up and verifying in a real browser, with everything else real too."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from werkzeug.serving import make_server

from harness.browsers import fill_in_own, needs_chromium
from harness.processes import consumer, free_port
from harness.smtp_server import Server
from harness.visitor import PASSWORD
from tests.system.test_journey import Environ, website
from webapp import create_app
from webapp.db.base import db
from webapp.devmail import Mailbox

pytestmark = needs_chromium


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A person's browser without JavaScript: no page needs it."""
    with browser.new_context(java_script_enabled=False) as context:
        yield context.new_page()


@pytest.fixture
def url(process_environ: Environ) -> Iterator[str]:
    process_environ["VERIFY_EMAIL_DELAY"] = "1"
    with website(process_environ) as url, consumer(process_environ):
        yield url


def sign_up(page: Page, url: str) -> None:
    page.goto(url)
    page.get_by_role("main").get_by_role("link", name="Sign up").click()
    page.get_by_label("Username").fill("mick19")
    page.get_by_label("Full name").fill("Mick Example")
    page.get_by_label("Email address").fill("mick@example.com")
    fill_in_own(page)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()


def test_a_person_signs_up_follows_the_link_confirms_and_is_signed_in(page: Page, url: str, smtp: Server) -> None:
    sign_up(page, url)
    mail = smtp.wait_for("mick@example.com")
    page.get_by_role("link", name="Check again").click()
    page.goto(mail.link)
    expect(page.get_by_text("m•••@example.com")).to_be_visible()
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()
    expect(page.get_by_text("Verified", exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.goto(f"{url}/account")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_on_another_device_the_password_is_asked(browser: Browser, page: Page, url: str, smtp: Server) -> None:
    sign_up(page, url)
    with browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 667}) as phone:
        other = phone.new_page()
        other.goto(smtp.wait_for("mick@example.com").link)
        other.get_by_label("Your password").fill(PASSWORD)
        other.get_by_role("button", name="Confirm").click()
        expect(other.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()
    page.get_by_role("link", name="Check again").click()
    expect(page.get_by_role("heading", name="Your email address is confirmed")).to_be_visible()


def test_the_waiting_page_goes_on_by_itself_and_leaves_alone_what_is_typed(
    browser: Browser, url: str, smtp: Server
) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        sign_up(page, url)
        page.evaluate(
            """window.heard = [];
            const status = document.getElementById("announcement");
            new MutationObserver(() => heard.push(status.textContent)).observe(status, {childList: true});"""
        )
        page.get_by_label("Code from the email").press_sequentially("48")
        mail = smtp.wait_for("mick@example.com")
        # The seconds count up without being announced.
        expect(page.get_by_text(re.compile(r"^Sent ([5-9]|[1-5]\d) seconds ago\.$"))).to_be_visible(timeout=15_000)
        assert sum("Sent " in told for told in page.evaluate("heard")) == 1
        expect(page.get_by_label("Code from the email")).to_have_value("48")
        expect(page.get_by_label("Code from the email")).to_be_focused()
        with browser.new_context() as phone:
            other = phone.new_page()
            other.goto(mail.link)
            other.get_by_label("Your password").fill(PASSWORD)
            other.get_by_role("button", name="Confirm", exact=True).click()
            expect(other.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()
        expect(page.get_by_role("heading", name="Your email address is confirmed")).to_be_visible(timeout=10_000)


@pytest.fixture
def mailbox_url(environ: Environ, tmp_path: Path) -> Iterator[str]:
    """A development mailbox in `tmp_path / "mailbox"`."""
    app = create_app({**environ, "APP_ENV": "development"})
    app.instance_path = str(tmp_path)
    server = make_server("127.0.0.1", free_port(), app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.port}/dev/mailbox"
    server.shutdown()
    server.server_close()
    with app.app_context():
        db.engine.dispose()


def test_new_mail_appears_in_the_mailbox_by_itself(browser: Browser, mailbox_url: str, tmp_path: Path) -> None:
    box = Mailbox(tmp_path / "mailbox")
    with browser.new_context() as context:
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(error.message))
        page.goto(mailbox_url)
        expect(page.get_by_text("No emails yet.")).to_be_visible()
        box.save(b"Subject: First\r\n\r\nHello")
        page.get_by_role("link", name="First").focus()
        box.save(b"Subject: Second\r\n\r\nHello")
        expect(page.get_by_role("link", name="Second")).to_be_visible()
        expect(page.get_by_role("link", name="First")).to_be_focused()
        expect(page.get_by_role("status")).to_contain_text("2 emails")
        expect(page.get_by_text("Unread")).to_have_count(2)
        page.get_by_role("link", name="Second").click()
        # Its scripts have run.
        page.wait_for_url("**/dev/mailbox/*")
        page.go_back()
        expect(page.get_by_text("Unread").filter(visible=True)).to_have_count(1)
        # Reading one in another tab counts too.
        with context.expect_page() as tab:
            page.get_by_role("link", name="First").click(modifiers=["ControlOrMeta"])
        expect(page.get_by_text("Unread").filter(visible=True)).to_have_count(0)
        tab.value.close()
        page.get_by_role("link", name="Delete all emails").click()
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("No emails yet.")).to_be_visible()
        page.get_by_role("switch", name="Show new emails automatically").uncheck()
        page.reload()
        expect(page.get_by_role("switch")).not_to_be_checked()
        assert problems == []


def test_the_mailbox_works_without_javascript(page: Page, mailbox_url: str, tmp_path: Path) -> None:
    page.goto(mailbox_url)
    expect(page.get_by_role("switch")).to_be_hidden()
    mail = b'Subject: Hello\r\nContent-Type: text/html\r\n\r\n<h1>Hi</h1><a href="/signup">Go on</a><script>x</script>'
    Mailbox(tmp_path / "mailbox").save(mail)
    page.get_by_role("link", name="Check again").click()
    page.get_by_role("link", name="Hello").click()
    for view in ("HTML", "On a phone"):
        page.get_by_role("link", name=view, exact=True).click()
        expect(page.frame_locator("iframe").get_by_role("heading", name="Hi")).to_be_visible()
    page.frame_locator("iframe").get_by_role("link", name="Go on").click()
    expect(page.get_by_role("heading", name="Sign up")).to_be_visible()
    page.go_back()
    page.get_by_role("link", name="Delete").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No emails yet.")).to_be_visible()
