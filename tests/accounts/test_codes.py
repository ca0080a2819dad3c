"""Codes to type: in the browser that signed up, and for a changed address."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import select

from harness.smtp_server import Mail, Server
from harness.visitor import PASSWORD, Visitor
from tests.factories import only_user, travel
from webapp.accounts import codes, links
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail

Send = Callable[[], None]


def code_in(mail: Mail) -> str:
    (code,) = re.findall(r"\b\d{3} \d{3}\b", mail.text)
    assert code in mail.html
    return str(code)


def type_code(visitor: Visitor, code: str) -> None:
    visitor.open("/signup/sent")
    visitor.submit("/signup/code", code=code)


def a_wrong_code(mail: Mail) -> str:
    return "000 000" if code_in(mail) != "000 000" else "000 001"


@pytest.mark.parametrize("typed", [str, lambda code: code.replace(" ", ""), lambda code: f" {code.replace(' ', '-')} "])
def test_the_code_verifies_in_the_browser_that_signed_up(
    visitor: Visitor, send_due: Send, smtp: Server, typed: Callable[[str], str]
) -> None:
    visitor.sign_up()
    send_due()
    type_code(visitor, typed(code_in(smtp.mails[0])))
    assert visitor.path == "/account"


def test_in_another_browser_there_is_no_place_to_type_it(another_visitor: Visitor) -> None:
    another_visitor.page = another_visitor.http.post("/signup/code", data={"code": "123456"})
    assert another_visitor.path == "/signup"


def test_a_code_counts_only_after_its_mail_was_handed_over(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    with app.app_context():
        verification = links.current_for(only_user(app))
        assert verification
        early = links.code(verification)
    type_code(visitor, early)
    assert "That code is wrong or has expired" in visitor.text
    send_due()
    assert code_in(smtp.mails[0]).replace(" ", "") == early
    type_code(visitor, early)
    assert visitor.path == "/account"


def test_a_code_lives_an_hour_and_a_mail_sent_again_brings_the_same_one_back(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    code = code_in(smtp.mails[0])
    travel(app, 3601)
    type_code(visitor, code)
    assert visitor.page.status_code == 422
    visitor.submit("/signup/resend")
    send_due()
    assert code_in(smtp.mails[1]) == code
    type_code(visitor, code)
    assert visitor.path == "/account"


def test_after_five_wrong_codes_no_code_counts_and_the_link_still_does(
    visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    (mail,) = smtp.mails
    for _ in range(codes.TRIES_OF_A_SIGNUP):
        type_code(visitor, a_wrong_code(mail))
        assert "That code is wrong or has expired" in visitor.text
    type_code(visitor, code_in(mail))
    assert "Too many wrong codes" in visitor.text
    # Neither another email nor another address grants new tries.
    visitor.submit("/signup/resend")
    type_code(visitor, code_in(mail))
    assert "Too many wrong codes" in visitor.text
    visitor.open("/signup/sent")
    visitor.submit("/signup/email", email="other@example.com")
    send_due()
    type_code(visitor, code_in(smtp.mails[-1]))
    assert "Too many wrong codes" in visitor.text
    visitor.open(smtp.mails[-1].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"


def test_twenty_wrong_codes_for_an_address_are_all_that_a_day_has(app: Flask, send_due: Send, smtp: Server) -> None:
    for n in range(4):
        rival = Visitor("http://signup.example", app)
        rival.sign_up(username=f"rival{n}")
        send_due()
        for _ in range(5):
            type_code(rival, a_wrong_code(smtp.mails[-1]))
    late = Visitor("http://signup.example", app)
    late.sign_up(username="late")
    send_due()
    type_code(late, code_in(smtp.mails[-1]))
    assert "Too many wrong codes" in late.text
    travel(app, 86401)
    late.submit("/signup/resend")
    send_due()
    type_code(late, code_in(smtp.mails[-1]))
    assert late.path == "/account"


def test_wrong_codes_sent_at_once_are_counted_one_by_one(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    wrong = a_wrong_code(smtp.mails[0])
    user_id = only_user(app).id

    def guess(_n: int) -> str:
        with app.app_context():
            try:
                codes.confirm(db.session.get_one(User, user_id), wrong)
            except (codes.CodeWrong, codes.TooManyTries) as error:
                return type(error).__name__
        return "verified"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(guess, range(16)))
    assert answers.count("CodeWrong") == codes.TRIES_OF_A_SIGNUP
    assert answers.count("TooManyTries") == 16 - codes.TRIES_OF_A_SIGNUP


@pytest.mark.parametrize(
    "code", ["", "abc", "12345", "1234567", "\u0661\u0662\u0663\u0664\u0665\u0666", "1" * 21, "\x00" * 6]
)
def test_what_is_no_code_is_told(visitor: Visitor, code: str) -> None:
    visitor.sign_up()
    type_code(visitor, code)
    assert visitor.page.status_code == 422
    assert 'id="code-error"' in visitor.page.text


def test_a_changed_address_voids_the_former_link_and_gets_a_mail_at_once(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    visitor.open("/signup/sent")
    visitor.submit("/signup/email", email="Right@example.com")
    assert visitor.path == "/signup/sent"
    assert "Right@example.com" in visitor.text
    visitor.open(smtp.mails[0].link)
    assert visitor.page.status_code == 404
    send_due()
    assert smtp.mails[1].recipients == ["Right@example.com"]
    visitor.open(smtp.mails[1].link)
    visitor.submit("/verify")
    assert only_user(app).email_key == "right@example.com"
    assert only_user(app).is_email_verified


def test_a_mail_that_still_waits_out_its_delay_does_not_leave_to_the_wrong_address(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    visitor.submit("/signup/email", email="right@example.com")
    with app.app_context():
        statuses = dict(db.session.execute(select(OutgoingEmail.to_address, OutgoingEmail.status)).all())
    assert statuses == {"mick@example.com": "canceled", "right@example.com": "queued"}
    send_due()
    assert [mail.recipients for mail in smtp.mails] == [["right@example.com"]]


def test_an_address_is_changed_three_times_at_most(visitor: Visitor) -> None:
    visitor.sign_up()
    for n in range(4):
        visitor.submit("/signup/email", email=f"mick{n}@example.com")
    assert visitor.page.status_code == 422
    assert "several times already" in visitor.text
    assert "mick2@example.com" in visitor.text


def test_a_change_that_is_sent_twice_is_one(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.sign_up()
    for _ in range(2):
        visitor.submit("/signup/email", email="right@example.com")
        send_due()
    assert {mail.link for mail in smtp.mails} == {smtp.mails[0].link}
    visitor.open(smtp.mails[0].link)
    assert "Is this address yours?" in visitor.text


@pytest.mark.parametrize("address", ["", "nowhere", "a@b\r\nBcc: c@d.example"])
def test_a_wrong_spelling_changes_nothing(visitor: Visitor, address: str) -> None:
    visitor.sign_up()
    visitor.submit("/signup/email", email=address)
    assert visitor.page.status_code == 422
    assert "mick@example.com" in visitor.text


def test_i_did_not_sign_up_voids_the_signup_and_can_be_undone(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    link = smtp.mails[0].link
    another_visitor.open(link)
    another_visitor.submit("/verify", action="disown")
    assert "that link no longer works" in another_visitor.text
    visitor.open(link)
    assert visitor.page.status_code == 404
    type_code(visitor, code_in(smtp.mails[0]))
    assert visitor.page.status_code == 422
    another_visitor.submit("/verify/undo")
    another_visitor.submit("/verify", password=PASSWORD)
    assert another_visitor.path == "/account"


def test_a_link_proves_its_address_for_another_signup_that_this_browser_holds(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.sign_up(username="stranger", password="a stranger's password")
    send_due()
    visitor.sign_up(username="mick19")
    send_due()
    # The owner opens the email that the stranger's signup caused.
    visitor.open(smtp.mails[0].link)
    assert "mick19" in visitor.text
    visitor.submit("/verify")
    assert visitor.path == "/account"
    assert "mick19" in visitor.text
    with app.app_context():
        verified = db.session.scalars(select(User.username).where(User.is_email_verified)).all()
    assert verified == ["mick19"]
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier="mick@example.com", password="a stranger's password")
    assert another_visitor.path != "/account"


def test_twenty_rivals_who_confirm_at_once_have_one_winner(app: Flask, send_due: Send, smtp: Server) -> None:
    rivals = [Visitor("http://signup.example", app) for _ in range(20)]
    for n, rival in enumerate(rivals):
        rival.sign_up(username=f"rival{n}")
    send_due()
    for rival, mail in zip(rivals, smtp.mails, strict=True):
        rival.open(mail.link)

    def confirm(rival: Visitor) -> int:
        return rival.submit("/verify").status_code

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(confirm, rivals))
    assert [rival.path for rival in rivals].count("/account") == 1
    assert set(answers) <= {200, 404, 410}
    with app.app_context():
        assert len(db.session.scalars(select(User).where(User.is_email_verified)).all()) == 1


@pytest.mark.parametrize(
    "password", ["password", "12345678", "qwertyuiop", "mick19mick19", "Mick Example", "mick@example.com", "AcmeAcme1"]
)
def test_common_passwords_and_the_persons_own_words_are_refused_with_the_reason(
    visitor: Visitor, password: str
) -> None:
    visitor.sign_up(full_name="Mick Example", password=password)
    assert visitor.page.status_code == 422
    assert "This is easy to guess." in visitor.text


@pytest.mark.parametrize(
    "password", ["correct horse battery", "ยาวพอและเดายากมาก", "x7#kQ!zzp0", "correct horse battery staple " * 4]
)
def test_long_and_foreign_passwords_are_welcome(visitor: Visitor, password: str) -> None:
    visitor.sign_up(password=password)
    assert visitor.path == "/signup/sent"
