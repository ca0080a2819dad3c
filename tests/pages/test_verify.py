"""Following the link, and confirming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import inspect, select, update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.config import load
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.pages.shared.link_cookie import mask
from webapp.pages.signup import waiting

Send = Callable[[], None]


@pytest.fixture
def link(visitor: Visitor, send_due: Send, smtp: Server) -> str:
    """The link that `visitor` got for signing up."""
    visitor.sign_up()
    send_due()
    return smtp.mails[0].link


def everything(app: Flask) -> dict[str, list[Any]]:
    """Every row of every table."""
    with app.app_context():
        tables = inspect(db.engine).get_table_names()
        return {
            table: [tuple(row) for row in db.session.execute(db.text(f"SELECT * FROM {table}"))]  # noqa: S608
            for table in tables
        }


def user(app: Flask) -> User:
    with app.app_context():
        return db.session.scalars(select(User)).one()


def test_fifty_looks_at_the_link_change_nothing_and_the_click_still_works(
    visitor: Visitor, another_visitor: Visitor, app: Flask, link: str
) -> None:
    before = everything(app)
    for _ in range(25):
        another_visitor.open(link)
        another_visitor.http.head(link)
    assert everything(app) == before
    visitor.open(link)
    visitor.submit("/verify")
    assert user(app).is_email_verified


def test_the_token_leaves_the_address_bar(visitor: Visitor, link: str) -> None:
    visitor.open(link, follow=False)
    assert visitor.page.status_code == 303
    assert visitor.page.headers["location"] == "/verify"
    cookie = visitor.page.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/verify" in cookie
    assert visitor.page.headers["referrer-policy"] == "no-referrer"
    assert visitor.page.headers["cache-control"] == "no-store"


def test_the_browser_that_signed_up_is_signed_in_at_once(visitor: Visitor, app: Flask, link: str) -> None:
    visitor.open(link)
    assert "m•••@example.com" in visitor.text
    assert "mick19" in visitor.text
    visitor.submit("/verify")
    assert visitor.path == "/account"
    assert user(app).is_email_verified
    assert user(app).purge_at is None


def test_another_browser_gives_the_password(another_visitor: Visitor, app: Flask, link: str) -> None:
    another_visitor.open(link)
    assert "mick19" not in another_visitor.text
    another_visitor.submit("/verify", password="")
    assert another_visitor.page.status_code == 422
    another_visitor.submit("/verify", password="not the password")
    assert another_visitor.page.status_code == 422
    assert "isn't the password for this signup" in another_visitor.text
    assert not user(app).is_email_verified
    another_visitor.submit("/verify", password=PASSWORD)
    assert another_visitor.path == "/account"


def test_another_browser_can_set_a_new_password_that_replaces_the_old_one(
    visitor: Visitor, another_visitor: Visitor, link: str
) -> None:
    another_visitor.open(link)
    another_visitor.submit("/verify", new_password="short")
    assert another_visitor.page.status_code == 422
    another_visitor.submit("/verify", new_password="a new long password")
    assert another_visitor.path == "/account"
    visitor.open("/login")
    visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert visitor.page.status_code == 422
    visitor.submit("/login", identifier="mick19", password="a new long password")
    assert visitor.path == "/account"


def test_after_an_hour_the_browser_that_signed_up_gives_the_password_too(
    visitor: Visitor, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "CONFIRM_SECONDS", -1)
    visitor.open(link)
    visitor.submit("/verify")
    assert visitor.page.status_code == 422
    assert "Please enter the password" in visitor.text


def test_a_second_click_says_already_verified_and_gives_no_session(
    visitor: Visitor, another_visitor: Visitor, link: str
) -> None:
    another_visitor.open(link)
    visitor.open(link)
    visitor.submit("/verify")
    another_visitor.submit("/verify", password=PASSWORD)
    assert "Already confirmed" in another_visitor.text
    another_visitor.open(link)
    assert another_visitor.page.status_code == 200
    assert "Already confirmed" in another_visitor.text
    assert "Sign in" in another_visitor.text
    another_visitor.open("/account")
    assert another_visitor.path == "/login"


def test_an_altered_foreign_or_garbage_link_gets_one_and_the_same_404(
    visitor: Visitor, another_visitor: Visitor, app: Flask, link: str
) -> None:
    token = link.rpartition("/")[2]
    altered = [
        token[:-1] + ("A" if token[-1] != "A" else "B"),
        ("A" if token[0] != "A" else "B") + token[1:],
        token[:-1],
        token + "A",
        token.lower(),
        "garbage",
        "%00",
        "é" * 43,
        "A" * 5000,
    ]
    pages = set()
    for text in altered:
        visitor.open(f"/verify/{text}")
        assert visitor.page.status_code == 404, text
        pages.add(visitor.text)
    assert len(pages) == 1
    assert "Enter the code instead" in pages.pop()
    # Without a signup in this browser, there is no page to enter it on.
    another_visitor.open("/verify/garbage")
    assert another_visitor.page.status_code == 404
    assert "Sign in to get a new link" in another_visitor.text
    assert 'class="button" href="/login"' in another_visitor.page.text
    assert not user(app).is_email_verified


@pytest.mark.parametrize("around", ["", ".", ",", ")", ">", "/", "%3E.", "!"])
def test_what_was_copied_behind_a_link_does_no_harm(visitor: Visitor, app: Flask, link: str, around: str) -> None:
    visitor.open(link + around)
    visitor.submit("/verify")
    assert user(app).is_email_verified


def test_the_page_without_a_link_says_what_to_do(visitor: Visitor) -> None:
    visitor.open("/verify")
    assert visitor.page.status_code == 404
    assert "open it here from your email again, and allow cookies" in visitor.text


def test_a_page_moved_to_the_browser_that_signed_up_leads_to_the_code(
    visitor: Visitor, another_visitor: Visitor, link: str
) -> None:
    """Like email apps that open links themselves, then offer to open the page in the real browser."""
    another_visitor.open(link)
    visitor.open("/verify")
    assert visitor.page.status_code == 404
    assert 'href="/signup/sent"' in visitor.page.text
    another_visitor.open("/verify/garbage")
    assert 'href="/signup/sent"' not in another_visitor.page.text


def test_a_password_manager_finds_whose_password_it_is(visitor: Visitor, another_visitor: Visitor, link: str) -> None:
    another_visitor.open(link)
    assert 'autocomplete="username"' in another_visitor.page.text
    visitor.open(link)
    visitor.submit("/verify")
    visitor.open("/account/password")
    assert 'value="mick19" autocomplete="username"' in visitor.page.text


def test_an_expired_link_offers_a_new_one(
    visitor: Visitor, app: Flask, link: str, send_due: Send, smtp: Server
) -> None:
    with app.app_context():
        db.session.execute(update(VerifyEmail).values(expires_at=db_now(-1)))
        db.session.commit()
    visitor.open(link)
    assert visitor.page.status_code == 410
    visitor.submit("/verify/renew", csrf_token="")
    assert visitor.page.status_code == 410
    visitor.submit("/verify/renew")
    assert "A new link is on its way" in visitor.text
    send_due()
    visitor.open(smtp.mails[1].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"


def test_the_links_time_runs_from_hand_off(visitor: Visitor, app: Flask, link: str) -> None:
    with app.app_context():
        proof = db.session.scalars(select(VerifyEmail)).one()
        now = db.session.scalar(select(db_now()))
    assert proof.expires_at is not None
    assert now is not None
    assert (proof.expires_at - proof.created_at).total_seconds() > 86400
    assert (proof.expires_at - now).total_seconds() <= 86400


def test_a_missing_csrf_token_shows_the_page_again(visitor: Visitor, app: Flask, link: str) -> None:
    visitor.open(link)
    visitor.submit("/verify", csrf_token="")
    assert visitor.page.status_code == 400
    assert "Nothing was changed" in visitor.text
    assert not user(app).is_email_verified
    visitor.submit("/verify")
    assert visitor.path == "/account"


def test_the_button_confirms_only_what_its_page_showed(
    visitor: Visitor, link: str, app: Flask, smtp: Server, send_due: Send
) -> None:
    visitor.open(link)
    shown = visitor.hidden("/verify")
    visitor.sign_up(username="other", email="other@example.com")
    send_due()
    visitor.open(smtp.mails[1].link)
    visitor.submit("/verify", verification=shown["verification"])
    assert visitor.path == "/verify"
    assert "o••••@example.com" in visitor.text
    with app.app_context():
        assert db.session.scalars(select(User).where(User.is_email_verified)).all() == []


def test_the_owner_wins_over_who_signed_up_with_the_address_before(
    visitor: Visitor, another_visitor: Visitor, smtp: Server, send_due: Send, link: str
) -> None:
    another_visitor.sign_up(username="owner", password="the owner's password")
    send_due()
    another_visitor.open(smtp.mails[1].link)
    another_visitor.submit("/verify")
    assert another_visitor.path == "/account"
    visitor.open(link)
    assert visitor.page.status_code == 404
    visitor.open("/login")
    visitor.submit("/login", identifier="mick@example.com", password=PASSWORD)
    assert visitor.path != "/account"


def test_a_username_taken_meanwhile_is_chosen_anew(
    visitor: Visitor, another_visitor: Visitor, smtp: Server, send_due: Send, link: str
) -> None:
    another_visitor.sign_up(email="other@example.com")
    send_due()
    another_visitor.open(smtp.mails[1].link)
    another_visitor.submit("/verify")
    visitor.open(link)
    visitor.submit("/verify")
    assert visitor.page.status_code == 422
    assert "That username was just taken" in visitor.text
    visitor.submit("/verify", username="a@b")
    assert visitor.page.status_code == 422
    visitor.submit("/verify", username="mick20")
    assert visitor.path == "/account"
    assert "mick20" in visitor.text


def test_a_link_made_with_a_retired_key_still_works(
    visitor: Visitor, app: Flask, environ: dict[str, str], link: str
) -> None:
    app.config.from_mapping(
        load({**environ, "SECRET_KEY": "a-new-key-9876543210", "SECRET_KEY_FALLBACKS": environ["SECRET_KEY"]})
    )
    visitor.open(link)
    visitor.submit("/verify", password=PASSWORD)
    assert user(app).is_email_verified


def test_a_link_signed_with_a_key_that_is_gone_is_made_anew(
    visitor: Visitor, app: Flask, environ: dict[str, str], link: str, smtp: Server, send_due: Send
) -> None:
    app.config.from_mapping(load({**environ, "SECRET_KEY": "a-new-key-9876543210"}))
    visitor.open(link)
    assert visitor.page.status_code == 404
    visitor.open("/login")
    visitor.submit("/login", identifier="mick19", password=PASSWORD)
    visitor.submit("/signup/resend")
    send_due()
    assert smtp.mails[1].link != link
    visitor.open(smtp.mails[1].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("mick@example.com", "m•••@example.com"),
        ("m@example.com", "m•@example.com"),
        ("root", "•root"),
        ("@x.org", "•@x.org"),
    ],
)
def test_an_address_is_masked_however_odd_it_is(address: str, masked: str) -> None:
    assert mask(address) == masked


def test_neither_token_nor_password_is_in_database_or_log(
    visitor: Visitor, app: Flask, link: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = link.rpartition("/")[2]
    visitor.open(link)
    visitor.submit("/verify")
    written = repr(everything(app)) + caplog.text
    assert "request" in caplog.text
    assert token not in written
    assert PASSWORD not in written
    assert "mick@example.com" not in caplog.text
