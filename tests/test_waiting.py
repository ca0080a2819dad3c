"""The waiting page tells what is happening to the mail."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from tests.smtp_server import Server
from tests.visitor import Visitor

Send = Callable[[], None]


def test_before_the_delay_is_over_it_says_when_the_mail_leaves(visitor: Visitor) -> None:
    visitor.sign_up()
    assert "Your mail leaves in 10 seconds." in visitor.text or "Your mail leaves in 9 seconds." in visitor.text


def test_after_the_mail_was_taken_it_says_when(visitor: Visitor, send_due: Send) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "Sent 1 second ago" in visitor.text or "Sent 0 seconds ago" in visitor.text


def test_a_mail_server_in_trouble_is_told_as_a_delay(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "451 try later"
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "is in line" in visitor.text


def test_a_refused_address_is_told(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 no such user"
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    assert "We could not reach that address" in visitor.text


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
    assert "Your address is verified" in visitor.text
    visitor.open("/account")
    assert visitor.path == "/login"
