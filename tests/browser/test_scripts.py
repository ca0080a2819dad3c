"""What pages do in a browser with scripts, and what they look like."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs

import pytest
from flask import Flask
from limits import parse_many
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect
from sqlalchemy import func, select

from harness.browsers import fill_in_own, needs_chromium, served
from harness.processes import free_port
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import code_in
from tests.conftest import Embedded
from tests.factories import travel
from webapp import create_app
from webapp.accounts.users import OWN_FIELDS, User
from webapp.config import LIMITS
from webapp.db.base import db
from webapp.extensions import mail
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.pages.shared.email_domains import suggestion

# Fills `shifts`: an entry each time that something on the page moved by itself.
NOTE_SHIFTS = """
    window.shifts = [];
    const note = (list) => shifts.push(...list.getEntries().filter((shift) => !shift.hadRecentInput));
    new PerformanceObserver(note).observe({type: "layout-shift", buffered: true});
"""

# The bytes that each URL took over the wire.
WEIGHTS = """() => Object.fromEntries(
    [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
        .map(({name, transferSize}) => [name, transferSize]))"""

AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text("utf-8")

Send = Callable[[], None]

# Pages look the same whatever the database.
pytestmark = [needs_chromium, pytest.mark.parametrize("backend", [Embedded.name], indirect=True)]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    """Without limits, until a test sets one."""
    return {**environ, "RATELIMIT_ENABLED": "true", **dict.fromkeys(LIMITS, "none")}


@pytest.fixture
def app(environ: dict[str, str]) -> Iterator[Flask]:
    """The app at its PUBLIC_URL."""
    port = free_port()
    app = create_app({**environ, "PUBLIC_URL": f"http://localhost:{port}"})
    with served(app, port):
        yield app
    mail.close()
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def context(browser: Browser, app: Flask) -> Iterator[BrowserContext]:
    with browser.new_context(base_url=app.config["PUBLIC_URL"]) as context:
        # Everything that tests wait for comes at once.
        context.set_default_timeout(10_000)
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def fill_in(page: Page, *, email: str = "mick@example.com", password: str = PASSWORD) -> None:
    page.goto("/signup")
    page.get_by_label("Username").fill("mick19")
    page.get_by_label("Full name").fill("Mick Example")
    page.get_by_label("Email address").fill(email)
    fill_in_own(page)
    page.get_by_label("Password", exact=True).fill(password)


def sign_up(page: Page, **fields: str) -> None:
    fill_in(page, **fields)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()


# Helpful forms.


def test_a_mistyped_domain_is_noticed_and_mended_with_one_click(page: Page) -> None:
    fill_in(page, email="mick@gmial.com")
    page.get_by_role("button", name="Did you mean mick@gmail.com?").click()
    expect(page.get_by_label("Email address")).to_have_value("mick@gmail.com")
    expect(page.get_by_text("Did you mean")).to_be_hidden()


@pytest.mark.parametrize(
    "domain",
    ["gmial.com", "gmal.com", "gmaill.com", "gmail.con", "gmail.com", "ymail.com", "example.com", "outlok.com"],
)
def test_the_browser_finds_the_same_domains_mistyped_as_the_server(page: Page, domain: str) -> None:
    fill_in(page, email=f"mick@{domain}")
    meant = suggestion(f"mick@{domain}")
    expect(page.locator(".meant")).to_have_text(f"Did you mean {meant}?" if meant else "")


def test_without_scripts_a_mistyped_domain_is_offered_on_the_next_page(browser: Browser, app: Flask) -> None:
    with browser.new_context(base_url=app.config["PUBLIC_URL"], java_script_enabled=False) as context:
        page = context.new_page()
        sign_up(page, email="mick@gmial.com")
        page.get_by_role("button", name="Yes, send it there").click()
        expect(page.get_by_text("mick@gmail.com")).to_be_visible()
        expect(page.get_by_text("Did you mean")).to_be_hidden()


@pytest.mark.parametrize(
    "password",
    [
        "password",
        "mick19mick",
        "Acme2026",
        "qwertyuiop",
        "aaaaaaaaaa",
        "ทดสอบทดสอบ",
        PASSWORD,
        "zq9-Kv.r" * 9,
        "12345678" + "é" * 40,
    ],
)
def test_the_meter_says_what_the_server_says(page: Page, password: str) -> None:
    fill_in(page, password=password)
    level = page.locator(".meter .level")
    expect(level).not_to_be_empty()
    said = level.inner_text()
    page.get_by_role("button", name="Sign up").click()
    page.wait_for_load_state()
    if page.url.endswith("/signup/sent"):
        assert said in {"Okay", "Good", "Very good"}
    else:
        assert said == page.locator("#password-error").inner_text()


def test_a_short_password_is_told_as_the_server_tells_it(page: Page) -> None:
    fill_in(page, password="x7Q")
    expect(page.locator(".meter .level")).to_have_text("Please use at least 8 characters.")


@pytest.mark.parametrize("cause", ["limit", "offline"])
def test_where_a_password_cannot_be_measured_the_meter_says_nothing_and_the_form_works(
    page: Page, app: Flask, context: BrowserContext, cause: str
) -> None:
    if cause == "limit":
        app.config["RATELIMIT_STRENGTH"] = parse_many("1/hour")
    fill_in(page, password="password")
    expect(page.locator(".meter .level")).not_to_be_empty()
    context.set_offline(cause == "offline")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    expect(page.locator(".meter")).to_be_hidden()
    context.set_offline(False)
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()


def test_the_meter_is_told_no_other_password(page: Page, send_due: Send, smtp: Server) -> None:
    sign_up(page)
    send_due()
    page.goto(smtp.mails[-1].link)
    page.get_by_role("button", name="Confirm", exact=True).click()
    page.goto("/account/password")
    page.get_by_label("Current password").fill(PASSWORD)
    with page.expect_request("**/account/password/strength") as asked:
        page.get_by_label("New password").fill("another horse battery")
    assert parse_qs(asked.value.post_data or "").keys() == {"csrf_token", "new_password"}
    expect(page.locator(".meter .level")).to_have_text("Very good")


def test_the_signup_page_weighs_under_100_kilobytes_until_its_password_is_measured(page: Page) -> None:
    fill_in(page)
    expect(page.locator(".meter .level")).not_to_be_empty()
    loaded: dict[str, int] = page.evaluate(WEIGHTS)
    assert any("/signup/strength" in url for url in loaded)
    assert 20_000 < sum(loaded.values()) < 100_000, loaded


def test_what_was_typed_as_password_can_be_shown_and_hidden(page: Page) -> None:
    fill_in(page)
    password = page.get_by_label("Password", exact=True)
    page.get_by_role("button", name="Show what you entered").click()
    expect(password).to_have_attribute("type", "text")
    page.get_by_role("button", name="Hide what you entered").click()
    expect(password).to_have_attribute("type", "password")


def test_a_double_click_signs_up_once(page: Page, app: Flask) -> None:
    fill_in(page)
    page.get_by_role("button", name="Sign up").dblclick()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(User)) == 1


def test_what_is_wrong_has_the_focus_is_linked_and_is_said_at_its_field(page: Page) -> None:
    fill_in(page, email="nobody")
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("alert")).to_be_focused()
    expect(page).to_have_title("Please check this again: Sign up · Acme")
    page.get_by_role("alert").get_by_role("link", name="Email address").click()
    field = page.get_by_label("Email address")
    expect(field).to_be_focused()
    expect(field).to_have_value("nobody")
    assert "should look like name@example.com" in page.locator("#email-error").inner_text()
    assert "email-error" in (field.get_attribute("aria-describedby") or "")
    expect(page.get_by_label("Password", exact=True)).to_have_value("")


def test_a_code_that_was_pasted_with_its_sentence_verifies(page: Page, send_due: Send, smtp: Server) -> None:
    sign_up(page)
    send_due()
    posted = codes_posted_by(page)
    digits = code_in(smtp.mails[0]).replace(" ", "")
    page.get_by_label("Code from the email").fill(f"Code: {digits[:3]} - {digits[3:]}.")
    expect(page.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()
    # As in the email.
    assert posted == [code_in(smtp.mails[0])]


def test_with_another_username_to_choose_the_code_waits_for_the_button(
    page: Page, app: Flask, send_due: Send, smtp: Server
) -> None:
    sign_up(page)
    rival = Visitor(app.config["PUBLIC_URL"], app)
    rival.sign_up(email="rival@example.com")
    send_due()
    rival.open(smtp.to("rival@example.com")[0].link)
    rival.submit("/verify")
    posted = codes_posted_by(page)
    code = code_in(smtp.to("mick@example.com")[0])
    field = page.get_by_label("Code from the email")
    field.fill(code)
    expect(page.get_by_role("alert")).to_contain_text("New username")
    field.fill(code.replace(" ", ""))
    expect(field).to_have_value(code)
    page.get_by_label("New username").fill("mick20")
    page.get_by_role("button", name="Confirm with the code").click()
    expect(page.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()
    assert posted == [code, code]


def test_without_scripts_a_button_confirms_the_code(browser: Browser, app: Flask, send_due: Send, smtp: Server) -> None:
    with browser.new_context(base_url=app.config["PUBLIC_URL"], java_script_enabled=False) as context:
        page = context.new_page()
        sign_up(page)
        send_due()
        page.get_by_label("Code from the email").fill(f"Code: {code_in(smtp.mails[0])}")
        page.get_by_role("button", name="Confirm with the code").click()
        expect(page.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()


def codes_posted_by(page: Page) -> list[str]:
    """Return the codes that the page will have posted, unchanged."""
    posted: list[str] = []

    def note(request: Request) -> None:
        if request.method == "POST":
            posted.extend(parse_qs(request.post_data or "").get("code", []))

    page.on("request", note)
    return posted


def test_after_a_wrong_code_the_person_says_when_it_is_right(page: Page, send_due: Send, smtp: Server) -> None:
    tries = []
    page.on("request", lambda request: tries.append(request) if request.url.endswith("/signup/code") else None)
    sign_up(page)
    send_due()
    right = code_in(smtp.mails[0]).replace(" ", "")
    wrong, half = (right[: 6 - n] + "".join(str(9 - int(digit)) for digit in right[6 - n :]) for n in (2, 1))
    field = page.get_by_label("Code from the email")
    field.fill(wrong)
    expect(page.get_by_role("alert")).to_be_visible()
    field.fill(half)
    field.fill(right)
    page.get_by_role("button", name="Confirm with the code").click()
    expect(page.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()
    assert len(tries) == 2


def test_the_tab_says_when_the_email_was_sent_and_the_code_is_what_comes_next(page: Page, send_due: Send) -> None:
    sign_up(page)
    page.evaluate("document.activeElement.blur()")
    send_due()
    expect(page).to_have_title(re.compile(r"^Sent .+ · Check your email"))
    expect(page.get_by_label("Code from the email")).to_be_focused()


def test_a_changed_address_waits_on_a_page_that_moves(page: Page, send_due: Send, smtp: Server) -> None:
    sign_up(page)
    send_due()
    page.goto(smtp.mails[-1].link)
    page.get_by_role("button", name="Confirm").click()
    page.goto("/account/email")
    page.get_by_label("New address").fill("new@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Send a link there").click()
    expect(page.get_by_text("You asked to change your address.")).to_be_visible()
    send_due()
    expect(page.locator("#announcement")).to_contain_text("Sent")
    expect(page).to_have_title(re.compile("^Sent "))
    page.get_by_label("Code from the email").press_sequentially(code_in(smtp.mails[-1]))
    expect(page.get_by_text("Your address was changed.")).to_be_visible()


def test_a_wrong_address_is_changed_on_the_waiting_page(page: Page, send_due: Send, smtp: Server) -> None:
    sign_up(page)
    page.get_by_text("Wrong address?").click()
    expect(page.get_by_label("Correct address")).to_have_value("mick@example.com")
    # It is selected, so typing replaces it.
    page.get_by_label("Correct address").press_sequentially("right@example.com")
    page.get_by_role("button", name="Send it there instead").click()
    expect(page.get_by_text("right@example.com")).to_be_visible()
    send_due()
    assert [mail.recipients for mail in smtp.mails] == [["right@example.com"]]


def test_an_expired_link_is_one_button_from_a_new_one(page: Page, app: Flask, send_due: Send, smtp: Server) -> None:
    sign_up(page)
    send_due()
    travel(app, 2 * 86400)
    assert (answer := page.goto(smtp.mails[0].link))
    assert answer.status == 410
    page.get_by_role("button", name="Send me a new link").click()
    send_due()
    page.goto(smtp.mails[1].link)
    expect(page.get_by_role("heading", name="Confirm your address")).to_be_visible()


def test_the_form_works_by_keyboard_alone(page: Page) -> None:
    page.goto("/signup")
    page.get_by_label("Username").focus()
    for text in ("mick19", "", *("x" for _own in OWN_FIELDS), "mick@example.com", PASSWORD):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    # The button that shows the password comes first.
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Sign up")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()


def test_a_click_is_not_lost_when_a_mistyped_domain_is_noticed_at_that_moment(page: Page) -> None:
    fill_in(page, email="mick@gmial.com")
    page.get_by_label("Email address").fill("mick@gmail.com")
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()


def test_a_forgotten_passwords_link_is_sent_again_once_the_seconds_are_over(page: Page, app: Flask) -> None:
    page.clock.install()
    page.goto("/forgot")
    page.get_by_label("Email address").fill("mick@example.com")
    page.get_by_role("button", name="Send the link").click()
    again = page.get_by_role("button", name="Send it again")
    expect(again).to_have_attribute("aria-disabled", "true")
    again.click(force=True)
    page.clock.run_for(10_000)
    expect(page.get_by_text(re.compile(r"You can send another in (50|4\d) seconds"))).to_be_visible()
    page.clock.run_for(60_000)
    expect(page.get_by_text("You can send another")).to_be_hidden()
    assert promised(app) == 1
    again.click()
    expect(page.get_by_text("You can send another")).to_be_visible()
    assert promised(app) == 2


def promised(app: Flask) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(OutgoingEmail)) or 0


# In Thai.


def test_a_click_is_not_lost_when_the_meter_shows_at_that_moment(page: Page) -> None:
    page.clock.install()
    fill_in(page)
    expect(page.locator(".meter")).to_be_visible()
    page.get_by_label("Password", exact=True).fill("")
    expect(page.locator(".meter")).to_be_hidden()
    page.get_by_role("button", name="Sign up").hover()
    # However long typing and clicking take, it would show while the button is down.
    page.clock.pause_at(datetime.now(UTC) + timedelta(hours=1))
    page.keyboard.type(PASSWORD)
    page.mouse.down()
    page.clock.run_for(1000)
    page.mouse.up()
    expect(page.get_by_role("heading", name="Check your email")).to_be_visible()


@pytest.fixture
def thai(browser: Browser, app: Flask, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A Thai person's browser, with or without scripts."""
    with browser.new_context(
        base_url=app.config["PUBLIC_URL"], locale="th-TH", java_script_enabled=request.param
    ) as context:
        context.set_default_timeout(10_000)
        yield context.new_page()


def sign_up_in_thai(page: Page, email: str) -> None:
    page.goto("/")
    page.get_by_role("main").get_by_role("link", name="สมัครใช้งาน").click()
    page.get_by_label("ชื่อผู้ใช้").fill("สมชาย")
    page.get_by_label("ชื่อ-นามสกุล").fill("สมชาย ใจดี")
    fill_in_own(page)
    page.get_by_label("อีเมล").fill(email)
    page.get_by_label("รหัสผ่าน", exact=True).fill("ม้าถูกแบตเตอรี่ลวดเย็บ")
    page.get_by_role("button", name="สมัครใช้งาน").click()
    expect(page.get_by_role("heading", name="ตรวจสอบอีเมลของคุณ")).to_be_visible()


def expect_welcome_in_thai(page: Page) -> None:
    expect(page.get_by_role("heading", name="ยินดีต้อนรับ สมชาย ใจดี")).to_be_visible()
    expect(page.get_by_text("ยืนยันแล้ว")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "th")


@pytest.mark.thai
@pytest.mark.parametrize("thai", [True], indirect=True, ids=["with scripts"])
def test_in_thai_one_signs_up_follows_the_link_and_confirms(thai: Page, send_due: Send, smtp: Server) -> None:
    sign_up_in_thai(thai, "somchai@example.com")
    expect(thai.get_by_text(re.compile(r"เราจะส่งอีเมลในอีก \d+ วินาที"))).to_be_visible()
    send_due()
    expect(thai.get_by_text(re.compile("^ส่งแล้วเมื่อ")).first).to_be_visible()
    thai.goto(smtp.mails[0].link)
    thai.get_by_role("button", name="ยืนยัน", exact=True).click()
    expect_welcome_in_thai(thai)


@pytest.mark.thai
@pytest.mark.parametrize("thai", [False], indirect=True, ids=["without scripts"])
def test_in_thai_without_scripts_one_mends_the_address_and_types_the_code(
    thai: Page, send_due: Send, smtp: Server
) -> None:
    sign_up_in_thai(thai, "somchai@exmaple.com")
    thai.get_by_text("อีเมลไม่ถูกต้อง?").click()
    thai.get_by_label("อีเมลที่ถูกต้อง").fill("somchai@example.com")
    thai.get_by_role("button", name="ส่งไปที่อีเมลนี้แทน").click()
    send_due()
    thai.get_by_role("link", name="ตรวจดูอีกครั้ง").click()
    expect(thai.get_by_text(re.compile("^ส่งแล้วเมื่อ")).first).to_be_visible()
    code = code_in(smtp.mails[0])
    assert len(smtp.mails) == 1
    thai.get_by_label("รหัสยืนยันจากอีเมล").fill("000 000")
    thai.get_by_role("button", name="ยืนยันด้วยรหัส").click()
    expect(thai.get_by_role("alert")).to_contain_text("รหัสยืนยันไม่ถูกต้อง")
    thai.get_by_label("รหัสยืนยันจากอีเมล").fill(code)
    thai.get_by_role("button", name="ยืนยันด้วยรหัส").click()
    expect_welcome_in_thai(thai)


# The waiting page.


def test_a_refused_address_is_told_as_it_happens_and_can_be_mended(page: Page, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 no such user"
    sign_up(page)
    send_due()
    expect(page.get_by_text("We couldn't reach that address.").first).to_be_visible()
    expect(page.get_by_text("no such user").first).to_be_visible()
    expect(page.get_by_label("Correct address")).to_be_visible()


def test_while_nobody_looks_the_page_rests_and_who_comes_back_sees_the_news(page: Page, send_due: Send) -> None:
    sign_up(page)
    look_away(page)
    page.evaluate("document.getElementById('progress').dispatchEvent(new Event('look'))")
    send_due()
    assert page.evaluate("asked") == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.get_by_text("Sent ").first).to_be_visible()
    assert page.evaluate("asked")


def test_when_another_tab_goes_on_so_does_this_one(
    page: Page, context: BrowserContext, send_due: Send, smtp: Server
) -> None:
    sign_up(page)
    send_due()
    other = context.new_page()
    other.goto(smtp.mails[0].link)
    other.get_by_role("button", name="Confirm", exact=True).click()
    expect(page.get_by_role("heading", name="Welcome, Mick Example")).to_be_visible()


def test_another_mail_can_be_asked_for_once_the_seconds_went_by(
    page: Page, app: Flask, send_due: Send, smtp: Server
) -> None:
    sign_up(page)
    send_due()
    page.reload()
    again = page.get_by_role("button", name="Send it again")
    expect(again).to_have_attribute("aria-disabled", "true")
    travel(app, 60)
    page.reload()
    expect(again).to_have_attribute("aria-disabled", "false")
    again.click()
    expect(page.get_by_text("Sending…")).to_be_visible()
    send_due()
    assert len(smtp.mails) == 2


def test_the_webmail_of_common_domains_is_one_click_away(page: Page) -> None:
    sign_up(page, email="mick@gmail.com")
    expect(page.get_by_role("link", name="Open Gmail")).to_have_attribute("href", "https://mail.google.com/")


# Appearance and accessibility.


def test_the_signup_page_is_small_and_nothing_on_it_moves(page: Page) -> None:
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    sizes: list[int] = []
    devtools.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.add_init_script(NOTE_SHIFTS)
    page.goto("/signup", wait_until="networkidle")
    assert len(sizes) >= 5
    assert sum(sizes) < 60 * 1024, sizes
    assert page.evaluate("shifts.length") == 0


def test_nothing_on_the_waiting_page_moves_when_the_mail_was_sent(page: Page, send_due: Send) -> None:
    page.add_init_script(NOTE_SHIFTS)
    sign_up(page, email="mick@gmail.com")
    send_due()
    expect(page.get_by_text("Sent ").first).to_be_visible()
    assert page.evaluate("shifts.length") == 0


def test_who_wants_less_motion_gets_none(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    sign_up(page)
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations().length") == 1


def test_what_moves_ends_and_costs_no_painting(page: Page) -> None:
    sign_up(page)
    moves = page.evaluate(
        "document.getAnimations().map(({effect}) => [effect.getTiming().iterations, effect.getKeyframes()])"
    )
    assert moves
    for times, frames in moves:
        assert isinstance(times, int), "without end, which JSON has no number for"
        changed = {name for frame in frames for name in frame} - {"offset", "computedOffset", "easing", "composite"}
        assert changed <= {"opacity", "transform"}


# The life of an account.


@pytest.mark.thai
def test_an_account_is_led_by_keyboard_alone_in_thai_on_a_phone_without_scripts(
    browser: Browser, page: Page, app: Flask, send_due: Send, smtp: Server
) -> None:
    # Axe is a script, so it gets copies.
    glass = page
    glass.set_viewport_size({"width": 375, "height": 667})
    glass.goto("/")
    elsewhere = Visitor(app.config["PUBLIC_URL"], app)
    elsewhere.sign_up()
    send_due()
    elsewhere.open(smtp.mails[0].link)
    elsewhere.submit("/verify")
    with browser.new_context(
        base_url=app.config["PUBLIC_URL"],
        java_script_enabled=False,
        viewport={"width": 375, "height": 667},
        locale="th-TH",
    ) as phone:
        page = phone.new_page()
        page.set_default_timeout(10_000)
        page.goto("/login")
        type_into(page, "ชื่อผู้ใช้หรืออีเมล", "mick19")
        type_into(page, "รหัสผ่าน", PASSWORD, enter=True)
        press(page, "link", "ชื่อ mick19")
        type_into(page, "ชื่อ-นามสกุล", "Mick Example", enter=True)
        expect(page.get_by_role("status")).to_have_text("บันทึกแล้ว")
        press(page, "link", "อีเมล mick@example.com")
        type_into(page, "อีเมลใหม่", "new@example.com")
        type_into(page, "รหัสผ่าน", PASSWORD, enter=True)
        expect(page.get_by_text("new@example.com")).to_be_visible()
        look_closely(page, glass)
        send_due()
        page.goto(smtp.to("new@example.com")[-1].link)
        expect(page.get_by_text("n••@example.com")).to_be_visible()
        press(page, "button", "ยืนยัน")
        expect(page.get_by_role("status")).to_contain_text("เปลี่ยนอีเมลของคุณแล้ว")
        look_closely(page, glass)
        press(page, "link", "อุปกรณ์ ")
        expect(page.get_by_text("อุปกรณ์นี้")).to_be_visible()
        press(page, "button", "ออกจากระบบบนอุปกรณ์อื่นทั้งหมด")
        expect(page.get_by_role("listitem").filter(has_text="127.0.0.1")).to_have_count(1)
        look_closely(page, glass)
        elsewhere.open("/account")
        assert elsewhere.path == "/login"
        press(page, "link", "บัญชีของคุณ")
        press(page, "link", "ข้อมูลของคุณ")
        with page.expect_download() as download:
            press(page, "button", "ดาวน์โหลดเป็น JSON")
        assert "new@example.com" in download.value.path().read_text("utf-8")
        press(page, "link", "บัญชีของคุณ")
        press(page, "link", "ลบบัญชี")
        type_into(page, "รหัสผ่าน", PASSWORD, enter=True)
        expect(page.get_by_role("status")).to_contain_text("ลบบัญชีของคุณแล้ว")
        look_closely(page, glass)


def press(page: Page, role: Literal["link", "button"], name: str) -> None:
    """Go there by keyboard, and press it."""
    tab_to(page, page.get_by_role(role, name=name).first)
    page.keyboard.press("Enter")


def type_into(page: Page, label: str, text: str, *, enter: bool = False) -> None:
    tab_to(page, page.get_by_label(label).first)
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(text)
    if enter:
        page.keyboard.press("Enter")


def look_away(page: Page) -> None:
    """Hide the page, and let it note what it asks for from then on as `asked`.

    A listener out here might hear only now of what was asked for just before.
    """
    page.evaluate(
        """() => {
            Object.defineProperty(document, "hidden", {value: true, configurable: true});
            const ask = window.fetch;
            window.asked = [];
            window.fetch = (...request) => asked.push(String(request[0])) && ask(...request);
        }"""
    )


def tab_to(page: Page, target: Locator) -> None:
    for _ in range(30):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"the keyboard does not reach {target}")


def look_closely(page: Page, glass: Page) -> None:
    """Fail if the page is wider than the phone, or axe finds something."""
    # Without the scripts of the page, which would lead the copy on.
    glass.set_content(re.sub(r"<script.*?</script>", "", page.content(), flags=re.DOTALL))
    assert glass.evaluate("document.documentElement.scrollWidth") <= 375
    glass.evaluate(AXE)
    assert glass.evaluate("axe.run()")["violations"] == []
