"""Who someone is, by the name and password they typed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.factories import only_user
from webapp.accounts.users import User
from webapp.db.base import db

Send = Callable[[], None]


def sign_in(visitor: Visitor, identifier: str, password: str = PASSWORD) -> str:
    """Return the path that it leads to."""
    visitor.open("/login")
    visitor.submit("/login", identifier=identifier, password=password)
    return visitor.path


def set_all(app: Flask, **values: object) -> None:
    with app.app_context():
        db.session.execute(update(User).values(**values))
        db.session.commit()


def test_a_pending_signup_is_found_by_its_name_and_not_by_its_address(
    visitor: Visitor, another_visitor: Visitor
) -> None:
    visitor.sign_up()
    assert sign_in(another_visitor, "mick@example.com") == "/login"
    assert sign_in(another_visitor, "MICK19") == "/signup/sent"


def test_in_its_own_browser_a_signup_is_found_by_its_address_too(visitor: Visitor) -> None:
    visitor.sign_up()
    assert sign_in(visitor, "Mick@EXAMPLE.com") == "/signup/sent"


def test_who_signs_up_later_with_the_same_name_shuts_nobody_out(
    visitor: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    visitor.sign_up()
    another_visitor.sign_up(email="rival@example.com", username="MICK19", password="the rival's password")
    elsewhere = Visitor("http://signup.example", app)
    assert sign_in(elsewhere, "mick19") == "/signup/sent"
    assert "mick@example.com" in elsewhere.text
    # Nor does someone who signed up earlier, in the browser of your own signup.
    assert sign_in(another_visitor, "mick19", "the rival's password") == "/signup/sent"
    assert "rival@example.com" in another_visitor.text


def test_a_pending_signup_of_another_browser_is_not_mixed_up_with_what_is_typed(
    visitor: Visitor, another_visitor: Visitor
) -> None:
    visitor.sign_up()
    another_visitor.sign_up(username="ann", email="ann@example.com", password="password of ann")
    assert sign_in(another_visitor, "mick19") == "/signup/sent"
    assert "mick@example.com" in another_visitor.text


def test_users_from_before_verification_are_found_by_both(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    set_all(app, purge_at=None)
    # A stranger's signup with the address changes nothing.
    Visitor("http://signup.example", app).sign_up(username="rival", password="the rival's password")
    for identifier in ("mick@example.com", "mick19"):
        assert sign_in(Visitor("http://signup.example", app), identifier) == "/signup/sent"


def test_the_page_says_how_to_go_on_when_the_address_was_never_confirmed(visitor: Visitor) -> None:
    assert "confirmed your email yet?" in visitor.open("/login").text


@pytest.mark.parametrize("kept", ["", "garbage", "$argon2id$v=19$m=8,t=1", "pbkdf2:sha256:1$salt$00"])
@pytest.mark.parametrize("is_verified", [False, True])
def test_a_hash_that_cannot_be_read_is_a_failed_sign_in_and_told_once(
    visitor: Visitor,
    another_visitor: Visitor,
    app: Flask,
    send_due: Send,
    smtp: Server,
    caplog: pytest.LogCaptureFixture,
    kept: str,
    *,
    is_verified: bool,
) -> None:
    visitor.sign_up()
    send_due()
    if is_verified:
        visitor.open(smtp.mails[-1].link)
        visitor.submit("/verify")
    set_all(app, password_hash=kept)
    for _ in range(2):
        assert sign_in(another_visitor, "mick19") == "/login"
        assert another_visitor.page.status_code == 422
    assert caplog.text.count("password_hash_unreadable") == 1
    assert f"'user_id': {only_user(app).id}" in caplog.text
    if is_verified:
        visitor.open("/account/delete")
        visitor.submit("/account/delete", password=PASSWORD)
    else:
        another_visitor.open(smtp.mails[-1].link)
        another_visitor.submit("/verify", password=PASSWORD)
        visitor = another_visitor
    assert visitor.page.status_code == 422
