"""Looking at a page changes nothing, whoever looks, and in whatever language."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_email_change import ask
from tests.factories import travel
from tests.pages.test_ops import operator
from tests.pages.test_verify import everything
from webapp.accounts import sessions
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.outbox.kinds import TEMPLATES
from webapp.outbox.outgoing_email import OutgoingEmail

Send = Callable[[], None]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    """With the pages that exist only in a trial."""
    return {**environ, "APP_ENV": "development"}


def addresses(app: Flask, tokens: dict[str, str]) -> list[str]:
    """Return one URL of each page: for links, one with a valid token and one with an invalid token."""
    with app.app_context():
        email_id = db.session.scalars(select(OutgoingEmail.id)).first() or uuid.uuid4()
    values = {
        "email_id": email_id,
        "template": next(iter(TEMPLATES)),
        "action": "retry",
        "act": "lock",
        "change": "off",
        "filename": "app.css",
    }
    values |= {"name": "none", "mail_id": "none"}
    found = []
    with app.test_request_context():
        for rule in app.url_map.iter_rules():
            if "GET" in (rule.methods or ()):
                for token in ("x", tokens.get(rule.rule, "y")) if "token" in rule.arguments else ("x",):
                    wanted = {**values, "token": token}
                    arguments = {name: wanted.get(name, "1") for name in rule.arguments}
                    found.append(app.url_map.bind("signup.example").build(rule.endpoint, arguments))
    assert len(found) > 30
    return found


def test_whoever_looks_at_whatever_page_changes_no_row(
    app: Flask, visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    another_visitor.sign_up(username="pending", email="pending@example.com")
    visitor.sign_up()
    send_due()
    link = smtp.mails[-1].link
    visitor.open(link)
    visitor.submit("/verify")
    visitor.open("/forgot")
    visitor.submit("/forgot", email="mick@example.com")
    ask(visitor)
    send_due()
    tokens = {}
    for mail in smtp.mails:
        path, _slash, token = mail.link.removeprefix("http://signup.example").rpartition("/")
        tokens[f"{path}/<token>"] = token
    assert len(tokens) == 3
    pages = addresses(app, tokens)
    people = {
        "a stranger": Visitor("http://signup.example", app),
        "who waits": another_visitor,
        "who is signed in": visitor,
        "an admin": operator(app),
    }
    before = everything(app)
    for who, person in people.items():
        for page in pages:
            for address in (page, f"{page}?language=th"):
                for method in ("GET", "HEAD"):
                    person.http.request(method, address)
        assert everything(app) == before, who


def test_a_link_from_elsewhere_keeps_no_session_alive(member: Visitor, app: Flask) -> None:
    """The only thing that a look may write is the last use of your own session."""
    travel(app, sessions.SEEN_SECONDS + 1)
    before = everything(app)
    member.http.get("/account", headers={"Sec-Fetch-Site": "cross-site"})
    member.http.get("/account/sessions", headers={"Sec-Fetch-Site": "cross-site"})
    assert everything(app) == before
    member.http.get("/account", headers={"Sec-Fetch-Site": "same-origin"})
    after = everything(app)
    assert {table for table in before if before[table] != after[table]} == {"user_sessions"}


# The language that we write in.


def locales(app: Flask) -> list[str]:
    with app.app_context():
        return list(db.session.scalars(select(User.locale).order_by(User.id)))


@pytest.mark.thai
def test_a_link_changes_the_language_of_this_browsers_pages_alone(member: Visitor, app: Flask) -> None:
    for page in ("/account", "/signup/sent", "/account/profile", "/", "/account"):
        assert '<html lang="th">' in member.open(f"{page}?language=th").text
    assert locales(app) == ["en"]


@pytest.mark.thai
def test_the_button_changes_the_language_of_pages_and_mails_and_leads_back(member: Visitor, app: Flask) -> None:
    member.open("/account/profile")
    member.submit("/language", language="th")
    assert member.path == "/account/profile"
    assert '<html lang="th">' in member.page.text
    assert locales(app) == ["th"]
    member.submit("/language", language="en")
    assert '<html lang="en">' in member.page.text
    assert locales(app) == ["en"]


@pytest.mark.thai
@pytest.mark.parametrize(
    ("typed", "status"),
    [({"csrf_token": "bad"}, 400), ({"language": "xx"}, 400), ({"language": ""}, 400), ({"language": "th\0"}, 400)],
)
def test_a_language_takes_a_pages_own_button(member: Visitor, app: Flask, typed: dict[str, str], status: int) -> None:
    member.open("/account")
    fields: dict[str, Any] = {"language": "th", **typed}
    member.submit("/language", **fields)
    assert member.page.status_code == status
    assert locales(app) == ["en"]
    assert member.hidden("/language")["back"] == "/"


@pytest.mark.thai
@pytest.mark.parametrize(
    "back", ["//evil.test", "/\\evil.test", "https://evil.test", "/\t/evil.test", "", "javascript:0"]
)
def test_the_button_leads_to_no_other_site(member: Visitor, back: str) -> None:
    member.open("/account")
    page = member.submit("/language", follow=False, language="th", back=back)
    assert page.headers["location"] == "/"


@pytest.mark.thai
def test_who_signs_in_is_written_to_in_the_language_that_was_chosen_here(
    member: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    another_visitor.open("/login?language=th")
    another_visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert another_visitor.path == "/account"
    assert locales(app) == ["th"]


@pytest.mark.thai
def test_who_has_no_part_in_an_account_writes_to_nobody(visitor: Visitor, app: Flask) -> None:
    """In an unknown browser the page only offers links, and the session holds nothing."""
    page = visitor.open("/")
    assert "?language=th" in page.text
    assert "set-cookie" not in page.headers
