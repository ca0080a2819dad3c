"""The waiting page says what is happening to the email."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask import Flask
from limits import parse_many

from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.accounts.test_codes import code_in
from tests.factories import travel
from webapp.db.base import db
from webapp.delivery import circuit_breaker

Send = Callable[[], None]


def test_before_the_delay_is_over_it_says_when_the_mail_leaves(visitor: Visitor) -> None:
    visitor.sign_up()
    assert re.search(r"Sending in (10|\d) seconds?\.", visitor.text)


def test_after_the_mail_was_taken_it_says_when(visitor: Visitor, send_due: Send) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert re.search(r"Sent [12] seconds? ago", visitor.text)


def test_a_mail_that_was_taken_in_the_future_of_our_clock_was_taken_just_now(
    visitor: Visitor, app: Flask, send_due: Send
) -> None:
    visitor.sign_up()
    send_due()
    # The database's clock is ahead of the web server's.
    travel(app, -5)
    visitor.open("/signup/sent")
    assert "Sent 1 second ago" in visitor.text


def test_a_mail_server_in_trouble_is_told_as_a_delay(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "451 try later"
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "mail server is busy" in visitor.text


def test_a_mail_that_nobody_takes_is_told_to_be_in_line(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    travel(app, 12)
    visitor.open("/signup/sent")
    assert "Sending…" in visitor.text
    travel(app, 5)
    visitor.open("/signup/sent")
    assert "Email is slow right now. Yours is queued; you can close this page." in visitor.text


def test_while_our_mail_server_is_down_that_is_told_at_once(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    with app.app_context():
        circuit_breaker.trip("nobody answers")
        db.session.commit()
    visitor.open("/signup/sent")
    assert "Email is slow right now." in visitor.text
    with app.app_context():
        circuit_breaker.reset()
        db.session.commit()
    visitor.open("/signup/sent")
    assert "Sending in" in visitor.text


def test_when_it_is_told_to_wait_it_says_who_said_so(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "451 try later"
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "example.com's mail server is busy." in visitor.text


def test_after_a_minute_another_mail_makes_sense(visitor: Visitor, send_due: Send, app: Flask) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert re.search(r"You can send another in (59|60) seconds.", visitor.text)
    travel(app, 60)
    visitor.open("/signup/sent")
    assert "or send it again." in visitor.text


def test_the_part_that_moves_is_the_same_on_the_page_and_alone(visitor: Visitor, send_due: Send) -> None:
    visitor.sign_up()
    send_due()

    def steps() -> list[str]:
        found: list[str] = re.findall(r"<li[ >].*?</li>", visitor.page.text, re.DOTALL)
        return [" ".join(re.sub(r"\d+ seconds?", "<n>", step).split()) for step in found if "icon" in step]

    visitor.open("/signup/sent")
    on_page = steps()
    visitor.open("/signup/sent/progress")
    assert steps() == on_page
    assert len(on_page) == 4
    assert "<html" not in visitor.page.text


def test_a_page_with_no_more_news_is_not_asked_for_again(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.sign_up()
    assert "data-hx-get" in visitor.page.text
    smtp.actions["RCPT"] = "550 no such user"
    send_due()
    visitor.open("/signup/sent/progress")
    assert "data-hx-get" not in visitor.page.text


def test_without_a_signup_the_part_that_moves_leads_to_the_form(visitor: Visitor) -> None:
    assert visitor.open("/signup/sent/progress").headers["hx-redirect"] == "/signup/sent"


def test_a_tab_that_looks_before_another_ones_answer_is_there_looks_again(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    """Otherwise it would say that another browser was signed in."""
    visitor.sign_up()
    send_due()
    before = dict(visitor.http.cookies)
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    # The same browser, without the cookie that is on its way.
    another_visitor.http.cookies.update(before)
    assert another_visitor.open("/signup/sent/progress").status_code == 204
    travel(app, 2)
    assert another_visitor.open("/signup/sent/progress").headers["hx-redirect"] == "/signup/sent"


def test_the_form_tells_who_signed_up_in_this_browser_already(visitor: Visitor) -> None:
    visitor.open("/signup")
    assert "already" not in visitor.text
    visitor.sign_up()
    visitor.open("/signup")
    assert "You already signed up in this browser. See where your email is" in visitor.text


@pytest.mark.parametrize("code", ["{0} {1}", "{0}-{1}", "Your code is {0} {1}.", "\u00a0{0}\u2009{1}"])
def test_a_code_is_taken_however_it_was_pasted(visitor: Visitor, send_due: Send, smtp: Server, code: str) -> None:
    visitor.sign_up()
    send_due()
    digits = code_in(smtp.mails[0]).replace(" ", "")
    visitor.open("/signup/sent")
    visitor.submit("/signup/code", code=code.format(digits[:3], digits[3:]))
    assert visitor.path == "/account"


def test_a_code_may_be_typed_in_thai_digits(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    visitor.submit(
        "/signup/code", code="".join(chr(0x0E50 + int(digit)) for digit in code_in(smtp.mails[0]).replace(" ", ""))
    )
    assert visitor.path == "/account"


def test_a_refused_address_is_told(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 no such user"
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "We couldn't reach that address" in visitor.text


def test_a_mail_that_waited_for_its_address_and_is_refused_then_is_told_as_failed(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many("1/hour")
    another_visitor.sign_up(username="rival")
    send_due()
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "Sent " in visitor.text
    # Other reasons to wait no longer show.
    with app.app_context():
        circuit_breaker.trip("nobody answers")
        db.session.commit()
    visitor.open("/signup/sent")
    assert "Sent " in visitor.text
    with app.app_context():
        circuit_breaker.reset()
        db.session.commit()
    travel(app, 3600)
    smtp.actions["RCPT"] = "550 no such user"
    send_due()
    visitor.open("/signup/sent")
    assert "We couldn't reach that address" in visitor.text


def test_send_it_again_sends_the_same_link_again(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    visitor.submit("/signup/resend")
    assert visitor.path == "/signup/sent"
    send_due()
    first, second = smtp.mails
    assert first.link == second.link
    assert first.message["Message-ID"] != second.message["Message-ID"]


def test_send_it_again_without_a_csrf_token_changes_nothing(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    visitor.submit("/signup/resend", csrf_token="")
    assert visitor.page.status_code == 400
    assert "Nothing was changed" in visitor.text
    send_due()
    assert len(smtp.mails) == 1


def test_a_browser_without_a_signup_is_led_to_the_form(visitor: Visitor) -> None:
    visitor.open("/signup/sent")
    assert visitor.path == "/signup"


def test_a_rival_does_not_learn_that_the_owner_verified(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    smtp.actions["RCPT"] = "451 try later"
    visitor.sign_up(username="rival")
    send_due()
    smtp.actions.clear()
    another_visitor.sign_up(username="owner")
    send_due()
    another_visitor.open(smtp.mails[-1].link)
    another_visitor.submit("/verify")
    assert another_visitor.path == "/account"
    send_due()
    visitor.open("/signup/sent")
    assert "Sent " in visitor.text
    assert "verified" not in visitor.text


def test_a_signup_verified_elsewhere_leads_to_sign_in(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server, app: Flask
) -> None:
    visitor.sign_up()
    send_due()
    another_visitor.open(smtp.mails[0].link)
    another_visitor.submit("/verify", password="correct horse battery")
    assert another_visitor.path == "/account"
    visitor.open("/signup/sent")
    assert "Your email address is confirmed" in visitor.text
    visitor.open("/account")
    assert visitor.path == "/login"
