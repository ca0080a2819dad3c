"""Signing in and out."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask import Flask, session
from sqlalchemy import select

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.factories import only_user, travel
from webapp.accounts import passwords, sessions
from webapp.db.base import db

Send = Callable[[], None]


@pytest.fixture
def verified(visitor: Visitor, send_due: Send, smtp: Server) -> Visitor:
    """A visitor who is signed in to a verified account."""
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    return visitor


@pytest.mark.parametrize("identifier", ["mick19", "MICK19", " mick19 ", "Mick@EXAMPLE.com"])
def test_name_and_address_work_in_any_spelling(verified: Visitor, another_visitor: Visitor, identifier: str) -> None:
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier=identifier, password=PASSWORD)
    assert another_visitor.path == "/account"


@pytest.mark.parametrize(
    ("identifier", "password"),
    [
        ("mick19", "wrong"),
        ("nobody", PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("not@an@address", PASSWORD),
        ("mick\x0019", PASSWORD),
        ("x" * 254, "x" * 128),
    ],
)
def test_what_does_not_match_gets_one_and_the_same_answer(
    verified: Visitor, another_visitor: Visitor, identifier: str, password: str
) -> None:
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier=identifier, password=password)
    assert another_visitor.page.status_code == 422
    assert "That username, email address, or password is wrong." in another_visitor.text
    assert f'value="{password}"' not in another_visitor.page.text


def test_empty_fields_are_told(visitor: Visitor) -> None:
    visitor.open("/login")
    visitor.submit("/login", identifier="", password="")
    assert visitor.page.status_code == 422
    assert "Please enter your password." in visitor.text


def test_without_a_csrf_token_nothing_happens_and_the_form_comes_back(
    verified: Visitor, another_visitor: Visitor
) -> None:
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier="mick19", password=PASSWORD, csrf_token="")
    assert another_visitor.page.status_code == 400
    assert 'value="mick19"' in another_visitor.page.text
    another_visitor.open("/account")
    assert another_visitor.path == "/login"


def test_a_pending_user_is_led_to_the_waiting_page_and_not_in(visitor: Visitor, another_visitor: Visitor) -> None:
    visitor.sign_up()
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert another_visitor.path == "/signup/sent"
    another_visitor.open("/account")
    assert another_visitor.path == "/login"


def test_signing_out_needs_the_button(verified: Visitor) -> None:
    # The page that other apps may link to.
    verified.open("/logout")
    assert "You're signed in as mick19" in verified.text
    verified.open("/account")
    verified.submit("/logout", csrf_token="")
    assert verified.page.status_code == 400
    assert "Nothing was changed. Please try again." in verified.text
    verified.open("/account")
    assert verified.path == "/account"
    verified.submit("/logout")
    verified.open("/account")
    assert verified.path == "/login"


def test_who_signed_out_is_told_so_and_not_to_sign_in_first(verified: Visitor) -> None:
    verified.open("/logout")
    verified.submit("/logout")
    # Not "/", which may be a page of an app that is for people who are signed in.
    assert verified.path == "/login"
    assert "You're signed out." in verified.text
    assert "first" not in verified.text
    # Once.
    verified.open("/logout")
    assert verified.path == "/login"
    assert "You're signed out." not in verified.text


def test_every_page_says_who_is_signed_in_and_signs_out(member: Visitor) -> None:
    for path in ("/", "/account/sessions"):
        header = member.open(path).text.partition("</header>")[0]
        assert re.search(r'href="/account"[^>]*>.*mick19', header)
        assert "Sign out" in header
    member.submit("/logout")
    assert "Sign out" not in member.open("/").text


def test_the_sign_in_page_leads_on_who_is_signed_in(verified: Visitor) -> None:
    verified.open("/login")
    assert verified.path == "/account"


def test_the_account_shows_who_and_that_the_address_is_verified(verified: Visitor) -> None:
    verified.open("/account")
    assert "mick19" in verified.text
    assert "mick@example.com Verified" in verified.text


def test_the_same_password_in_another_unicode_form_matches(app: Flask, visitor: Visitor) -> None:
    visitor.sign_up(password="caf\N{LATIN SMALL LETTER E WITH ACUTE} au lait")
    kept = only_user(app).password_hash
    with app.app_context():
        assert passwords.verify(kept, "cafe\N{COMBINING ACUTE ACCENT} au lait")


def stolen(visitor: Visitor, app: Flask) -> Visitor:
    """Someone with a copy of this visitor's cookies."""
    thief = Visitor("http://signup.example", app)
    for cookie in visitor.http.cookies.jar:
        thief.http.cookies.jar.set_cookie(cookie)
    return thief


def is_signed_in(visitor: Visitor) -> bool:
    visitor.open("/account")
    return visitor.path == "/account"


def test_signing_out_ends_the_session_on_the_server(verified: Visitor, app: Flask) -> None:
    copy = stolen(verified, app)
    assert is_signed_in(copy)
    verified.open("/account")
    verified.submit("/logout")
    assert not is_signed_in(copy)


def test_signing_in_rotates_the_session(verified: Visitor, app: Flask) -> None:
    before = stolen(verified, app)
    verified.open("/account")
    verified.submit("/logout")
    verified.open("/login")
    verified.submit("/login", identifier="mick19", password=PASSWORD)
    assert is_signed_in(verified)
    assert not is_signed_in(before)


def test_one_browser_signed_out_leaves_the_other_signed_in(verified: Visitor, another_visitor: Visitor) -> None:
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier="mick19", password=PASSWORD)
    verified.open("/account")
    verified.submit("/logout")
    assert is_signed_in(another_visitor)


def test_all_sessions_can_be_ended_at_once(verified: Visitor, another_visitor: Visitor, app: Flask) -> None:
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier="mick19", password=PASSWORD)
    with app.app_context():
        sessions.end_all(only_user(app))
    assert not is_signed_in(verified)
    assert not is_signed_in(another_visitor)


def test_a_session_ends_when_it_is_not_used_and_at_the_latest_after_90_days(verified: Visitor, app: Flask) -> None:
    for _ in range(8):
        travel(app, 11 * 86400)
        assert is_signed_in(verified)
    travel(app, 3 * 86400)
    assert not is_signed_in(verified)


def test_an_unused_session_ends_after_14_days(verified: Visitor, app: Flask) -> None:
    travel(app, 14 * 86400 + 60)
    assert not is_signed_in(verified)


def test_a_sessions_token_is_nowhere_in_the_database(verified: Visitor, app: Flask) -> None:
    with app.app_context():
        (kept,) = db.session.scalars(select(sessions.UserSession.token_hash)).all()
    with app.test_request_context(headers={"Cookie": f"session={verified.http.cookies['session']}"}):
        token = session["_user_id"]
    assert len(token) > 40
    assert kept != token
