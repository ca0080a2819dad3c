"""A forgotten password on a phone: by keyboard only, in Thai, without JavaScript."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect

from harness.browsers import needs_chromium
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.browser.test_scripts import app, context, look_closely, page, press, type_into
from tests.conftest import Embedded

Send = Callable[[], None]

pytestmark = [
    needs_chromium,
    pytest.mark.usefixtures("cheap_passwords"),
    pytest.mark.parametrize("backend", [Embedded.name], indirect=True),
]

# Its fixtures.
__all__ = ["app", "context", "page"]

FIRST, SECOND = "a new long password", "another horse battery"


@pytest.mark.thai
def test_a_forgotten_password_is_set_anew_and_then_changed(
    browser: Browser, page: Page, app: Flask, send_due: Send, smtp: Server
) -> None:
    url = app.config["PUBLIC_URL"]
    # Axe is a script, so it gets copies.
    glass = page
    glass.set_viewport_size({"width": 375, "height": 667})
    glass.goto("/")
    person = Visitor(url, app)
    person.http.headers["Accept-Language"] = "th"
    person.sign_up()
    send_due()
    person.open(smtp.mails[-1].link)
    person.submit("/verify")
    with browser.new_context(
        base_url=url, java_script_enabled=False, viewport={"width": 375, "height": 667}, locale="th-TH"
    ) as phone:
        page = phone.new_page()
        page.set_default_timeout(10_000)
        page.goto("/login")
        press(page, "link", "ลืมรหัสผ่าน?")
        expect(page.get_by_role("heading", level=1)).to_have_text("ลืมรหัสผ่าน?")
        look_closely(page, glass)
        type_into(page, "อีเมล", "mick@example.com", enter=True)
        expect(page.get_by_role("heading", level=1)).to_have_text("ตรวจสอบอีเมลของคุณ")
        look_closely(page, glass)
        send_due()
        page.goto(smtp.mails[-1].link)
        expect(page).to_have_url(f"{url}/reset")
        expect(page.get_by_label("ชื่อผู้ใช้")).to_have_value("mick19")
        type_into(page, "รหัสผ่านใหม่", "password", enter=True)
        expect(page.get_by_role("alert")).to_contain_text("เดาง่าย")
        look_closely(page, glass)
        type_into(page, "รหัสผ่านใหม่", FIRST, enter=True)
        expect(page.get_by_role("status")).to_contain_text("ออกจากระบบบนอุปกรณ์อื่นทั้งหมดแล้ว")
        look_closely(page, glass)
        press(page, "link", "รหัสผ่าน เปลี่ยนรหัสผ่าน")
        expect(page.get_by_role("heading", level=1)).to_have_text("เปลี่ยนรหัสผ่าน")
        look_closely(page, glass)
        type_into(page, "รหัสผ่านปัจจุบัน", FIRST)
        type_into(page, "รหัสผ่านใหม่", SECOND, enter=True)
        expect(page.get_by_role("status")).to_contain_text("ออกจากระบบบนอุปกรณ์อื่นทั้งหมดแล้ว")
    send_due()
    subjects = [mail.message["Subject"] for mail in smtp.mails[1:]]
    assert subjects[0] == "ตั้งรหัสผ่านใหม่สำหรับ Acme"
    assert set(subjects[1:]) == {"รหัสผ่าน Acme ของคุณถูกเปลี่ยนแล้ว"}
    assert person.open("/account").url.path == "/login"
