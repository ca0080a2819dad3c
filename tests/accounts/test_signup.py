"""Signing up: what people see, and what the database holds afterwards."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast
from urllib.parse import quote

import pytest
from flask import Flask, template_rendered
from jinja2 import BaseLoader, ChoiceLoader, DictLoader
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import CompileError

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.conftest import LANGUAGES
from tests.factories import NO_PASSWORD, only_user
from webapp.accounts import signup
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User, own_values
from webapp.db.base import db, execute_alone
from webapp.outbox.outgoing_email import OutgoingEmail

Send = Callable[[], None]


def rows(app: Flask) -> tuple[int, int, int]:
    """The numbers of users, verifications and emails."""
    with app.app_context():
        users, verifications, mails = (db.session.query(table).count() for table in (User, VerifyEmail, OutgoingEmail))
    return users, verifications, mails


def test_a_signup_commits_the_user_the_verification_and_the_mail(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up(full_name="Mick Example")
    assert visitor.path == "/signup/sent"
    with app.app_context():
        user = db.session.scalars(select(User)).one()
        email = db.session.scalars(select(OutgoingEmail)).one()
        proof = db.session.scalars(select(VerifyEmail)).one()
        assert (user.username, user.full_name, user.email) == ("mick19", "Mick Example", "mick@example.com")
        assert not user.is_email_verified
        assert user.purge_at is not None
        assert user.password_hash.startswith("$argon2id$")
        assert (email.status, email.user_id, email.verify_email_id) == ("queued", user.id, proof.id)
        assert 9 < (email.next_attempt_at - email.created_at).total_seconds() < 11
        assert proof.expires_at is None


def test_the_answer_to_a_signup_is_303(visitor: Visitor) -> None:
    visitor.open("/signup")
    visitor.submit(
        "/signup", follow=False, username="mick19", full_name="", email="mick@example.com", password=PASSWORD
    )
    assert visitor.page.status_code == 303
    assert visitor.page.headers["location"] == "/signup/sent"


def test_when_one_row_cannot_be_written_none_is(visitor: Visitor, app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    # The outbox table refuses, after the user and the verification were written.
    with app.app_context(), db.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE delivery_attempts")
        connection.exec_driver_sql("ALTER TABLE outgoing_emails RENAME TO elsewhere")
    app.testing = False
    visitor.open("/signup")
    visitor.submit("/signup", username="mick19", full_name="", email="mick@example.com", password=PASSWORD)
    assert visitor.page.status_code in {500, 503}
    assert "This usually fixes itself within a minute." in visitor.text
    # An operator sees it.
    assert "database_down" in caplog.text
    assert "flask db upgrade" in caplog.text
    assert "mick@example.com" not in caplog.text
    with app.app_context():
        assert db.session.scalars(select(User)).all() == []
        assert db.session.scalars(select(VerifyEmail)).all() == []


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("username", "", "Please choose a username."),
        ("username", "   ", "Please choose a username."),
        ("username", "x" * 65, "at most 64 characters"),
        ("username", "mick@home", "only letters, digits"),
        ("username", "mick\r\nBcc: all@example.com", "only letters, digits"),
        ("username", "mick\x00", "only letters, digits"),
        ("username", "<b>mick</b>", "only letters, digits"),
        ("full_name", "x" * 101, "at most 100 characters"),
        ("full_name", "Mick\r\nBcc: all@example.com", "control characters"),
        ("full_name", "Mick\x00", "control characters"),
        ("email", "", "Please enter your email address."),
        ("email", "mick", "check this address"),
        ("email", "mick@", "check this address"),
        ("email", "straße@example.com", "check this address"),
        ("email", "mick@example.com\r\nBcc: all@example.com", "check this address"),
        ("email", "mick\x00@example.com", "check this address"),
        ("email", "<b>@example.com", "check this address"),
        ("email", f"{'x' * 250}@example.com", "check this address"),
        ("password", "", "Please choose a password."),
        ("password", "short", "at least 8 characters"),
        ("password", "x" * 129, "at most 128 characters"),
    ],
)
def test_bad_input_is_told_beside_its_field_and_nothing_is_written(
    visitor: Visitor, app: Flask, field: str, value: str, complaint: str
) -> None:
    visitor.sign_up(**{field: value})
    assert visitor.page.status_code == 422
    assert complaint in visitor.text
    assert f'id="{field}-error"' in visitor.page.text
    assert rows(app) == (0, 0, 0)


def test_a_very_long_username_is_refused_before_it_costs_anything(visitor: Visitor) -> None:
    begun = time.thread_time()
    visitor.sign_up(username="a" + "\N{COMBINING ACUTE ACCENT}\N{COMBINING GRAVE ACCENT BELOW}" * 60_000)
    assert visitor.page.status_code == 413
    assert time.thread_time() - begun < 1


def test_what_was_typed_is_kept_but_the_password(visitor: Visitor) -> None:
    visitor.sign_up(username="mick19", full_name="Mick <b>", email="nowhere", password=PASSWORD)
    assert 'value="mick19"' in visitor.page.text
    assert 'value="Mick &lt;b&gt;"' in visitor.page.text
    assert 'value="nowhere"' in visitor.page.text
    assert PASSWORD not in visitor.page.text


@pytest.mark.parametrize("token", ["", "stale"])
def test_without_a_fresh_csrf_token_the_form_comes_back(visitor: Visitor, app: Flask, token: str) -> None:
    visitor.sign_up(csrf_token=token, username="mick19")
    assert visitor.page.status_code == 400
    assert "Nothing was changed" in visitor.text
    assert 'value="mick19"' in visitor.page.text
    assert PASSWORD not in visitor.page.text
    assert rows(app) == (0, 0, 0)
    # The form that came back works.
    visitor.submit("/signup", username="mick19", full_name="", email="mick@example.com", password=PASSWORD)
    assert visitor.path == "/signup/sent"


def test_markup_in_a_name_is_shown_as_text(visitor: Visitor, send_due: Send, smtp: Server) -> None:
    visitor.sign_up(full_name="<script>alert(1)</script> http://evil.example")
    send_due()
    (mail,) = smtp.mails
    assert "evil.example" not in mail.content.decode()
    visitor.open(mail.link)
    visitor.submit("/verify")
    assert "<script>alert" not in visitor.page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in visitor.page.text


def test_a_username_in_another_script_is_welcome(visitor: Visitor) -> None:
    visitor.sign_up(username="น้ำใส_๑")
    assert visitor.path == "/signup/sent"


def test_a_pending_signup_reserves_nothing(visitor: Visitor, another_visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    another_visitor.sign_up(password="quite another one")
    assert another_visitor.path == "/signup/sent"
    assert rows(app) == (2, 2, 2)


def test_a_username_of_a_verified_user_is_told_to_be_taken(
    visitor: Visitor, another_visitor: Visitor, app: Flask, smtp: Server, send_due: Send
) -> None:
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    another_visitor.sign_up(username="MICK19", email="other@example.com")
    assert another_visitor.page.status_code == 422
    assert "That username is taken" in another_visitor.text
    assert rows(app) == (1, 1, 1)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Mick@Example.COM", "mick@example.com"),
        ("mick+news@example.com", "mick+news@example.com"),
        ("mick@MÜNCHEN.example.com", "mick@xn--mnchen-3ya.example.com"),
        ("mick@xn--mnchen-3ya.example.com", "mick@xn--mnchen-3ya.example.com"),
        ("strasse@example.com", "strasse@example.com"),
    ],
)
def test_spellings_of_one_address_have_one_key(text: str, key: str) -> None:
    assert email_addresses.parse_address(text).key == key


@pytest.mark.parametrize("local", ["ann%example.net", "example.net!ann", "=?utf-8?q?ann=40example.net?="])
def test_an_address_that_some_read_as_another_one_does_not_do(visitor: Visitor, app: Flask, local: str) -> None:
    visitor.sign_up(email=f"{local}@example.com")
    assert visitor.page.status_code == 422
    assert "name@example.com" in visitor.text
    assert rows(app) == (0, 0, 0)


def test_a_resend_while_a_mail_waits_adds_none(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    with app.app_context():
        user = db.session.scalars(select(User)).one()
        assert signup.resend(user) is None
    assert rows(app) == (1, 1, 1)


def test_what_a_signup_is_given_and_would_not_write_is_an_error(app: Flask) -> None:
    person = dict.fromkeys(("username", "username_key", "username_skeleton", "full_name", "email_key", "locale"), "ann")
    person |= {"email": "ann@example.com", "password_hash": NO_PASSWORD, **own_values({})}
    with app.app_context():
        with pytest.raises((TypeError, CompileError), match="shoe_size"):
            signup.add(person | {"shoe_size": "43"}, uuid.uuid4(), None, 1)
        db.session.rollback()
        assert rows(app) == (0, 0, 0)
        signup.add(person, uuid.uuid4(), None, 1)
    assert rows(app) == (1, 1, 1)


@pytest.mark.parametrize("given", ["an unknown one", "too few"])
def test_a_statement_takes_the_values_that_it_writes_and_no_others(app: Flask, given: str) -> None:
    values = {"a": 1, "b": 2, "c": 3} if given == "an unknown one" else {"a": 1}
    with app.app_context(), pytest.raises(TypeError, match="c" if given == "an unknown one" else "b"):
        execute_alone(text("SELECT :a, :b"), values)


# A form that is sent twice.


def sent_again(app: Flask, visitor: Visitor, **fields: str) -> str:
    """Send the page's form again, like a browser that did not get the first response; return where it leads."""
    twin = Visitor("http://signup.example", app)
    twin.http.cookies.update(visitor.http.cookies)
    twin.page = visitor.page
    answer = twin.submit("/signup", follow=False, **fields)
    assert answer.status_code == 303
    twin.open(answer.headers["location"])
    return twin.text


def test_a_form_that_is_sent_many_times_at_once_is_one_signup_and_one_mail(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.open("/signup")
    typed = {"username": "mick19", "full_name": "", "email": "mick@example.com", "password": PASSWORD}
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda _: sent_again(app, visitor, **typed), range(4)))
    assert all("We're sending it to mick@example.com" in page for page in pages)
    assert only_user(app).username == "mick19"
    send_due()
    assert len(smtp.mails) == 1


def test_a_form_that_is_sent_twice_costs_no_connection(app: Flask) -> None:
    made = []
    with app.app_context():
        event.listen(db.engine, "connect", lambda *_: made.append("a connection"))

    def sign_up() -> tuple[uuid.UUID, uuid.UUID | None]:
        with app.app_context():
            return signup.sign_up(
                username="mick19",
                full_name="",
                address=email_addresses.parse_address("mick@example.com"),
                password_hash=NO_PASSWORD,
                locale="en",
                verification_id=uuid.UUID(int=1),
            )

    user_id, email_id = sign_up()
    assert email_id is not None
    assert [sign_up() for _ in range(3)] == [(user_id, None)] * 3
    assert len(made) == 1


def test_a_form_that_was_mended_after_going_back_is_another_signup(visitor: Visitor, app: Flask) -> None:
    visitor.open("/signup")
    typed = {"username": "mick19", "full_name": "", "email": "mick@exmaple.com", "password": PASSWORD}
    changes: list[dict[str, str]] = [
        {},
        {"email": "mick@example.com"},
        {"password": f"{PASSWORD} too"},
        {"username": "mick20"},
    ]
    for change in changes:
        sent_again(app, visitor, **{**typed, **change})
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(User)) == 4


def test_the_same_page_in_another_browser_is_another_signup(
    visitor: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    visitor.sign_up()
    nonce = {"nonce": "the-same"}
    for person in (visitor, another_visitor):
        person.sign_up(**nonce)
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(User)) == 3


def without_own_words(page: str) -> str:
    """Return the page without the words that are unique to this response."""
    return re.sub(r'name="(csrf_token|nonce)" value="[^"]+"', "", page)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_form_is_the_one_that_was_rendered_whoever_saw_it_first(app: Flask, member: Visitor, language: str) -> None:
    newcomer, another, returning = (Visitor("http://signup.example", app) for _ in range(3))
    returning.sign_up(username="ann", email="ann@example.com")
    everybody = [newcomer, another, returning, member]
    for visitor in everybody:
        visitor.open(f"/signup?language={language}")
    filled = [visitor.open("/signup").text for visitor in everybody]
    assert without_own_words(filled[0]) == without_own_words(filled[1])
    for visitor, page in zip(everybody, filled, strict=True):
        app.extensions["pages_for_nobody"].clear()
        assert without_own_words(visitor.open("/signup").text) == without_own_words(page)
    for word in ("nonce", "csrf_token"):
        assert len({visitor.hidden("/signup")[word] for visitor in everybody}) == 4
    newcomer.open("/signup")
    another.open("/signup")
    for visitor, name in ((another, "ben"), (newcomer, "cat")):
        visitor.submit("/signup", username=name, email=f"{name}@example.com", full_name="", password=PASSWORD)
        assert visitor.path == "/signup/sent"


def rendered(app: Flask, visitor: Visitor, *urls: str) -> int:
    """Return how many templates these pages needed."""
    templates: list[object] = []
    with template_rendered.connected_to(lambda _sender, template, **_more: templates.append(template), app):
        for url in urls:
            assert visitor.open(url).status_code == 200
    return len(templates)


def test_the_form_is_rendered_once_whatever_it_is_asked_with(app: Flask, visitor: Visitor) -> None:
    assert rendered(app, visitor, "/signup") == 1
    assert rendered(app, visitor, "/signup", "/signup?x=1", "/signup?x=2&next=//evil.example", "/signup?next=") == 0
    assert rendered(app, visitor, "/signup?next=/a") == 1
    assert rendered(app, visitor, "/signup?next=/b", "/signup?x=1&next=/c%3Fd%3De%26f", "/signup") == 0


def test_each_is_led_where_it_wants_to_go_and_nobody_where_others_do(
    app: Flask, visitor: Visitor, another_visitor: Visitor
) -> None:
    places = {"/account?a=1&b='2'": visitor, "http://signup.example/account/export": another_visitor}
    for place, person in places.items():
        person.open(f"/signup?next={quote(place, safe='')}")
        assert f'action="/signup?next={quote(place)}"' in person.page.text
        assert f'href="/login?next={quote(place)}"' in person.page.text
        assert f"?next={quote(place)}&amp;language=" in person.page.text or len(LANGUAGES) == 1
        assert set(re.findall(r'next=([^"&]+)', person.page.text)) == {quote(place)}
    for query in ("", "?x=1"):
        assert "next=" not in visitor.open(f"/signup{query}").text


def test_no_visitors_words_are_shown_to_the_next(app: Flask, visitor: Visitor, another_visitor: Visitor) -> None:
    theirs = (
        "{% extends 'base.html' %}{% from 'form.html' import hidden with context %}{% block main %}"
        "<form action='/signup'>{{ hidden(form) }}</form>"
        "{{ request.args.get('x') }} {{ request.cookies.get('x') }} {{ request.headers.get('X-Words') }} {{ session }}"
        "{% endblock %}"
    )
    app.jinja_loader = ChoiceLoader([DictLoader({"signup.html": theirs}), cast("BaseLoader", app.jinja_loader)])
    told = {"Cookie": "x=secret", "X-Words": "secret", "X-Forwarded-For": "secret", "Host": "signup.example"}
    for query in ("", "?x=secret", "?next=/secret&x=secret"):
        visitor.http.get(f"/signup{query}", headers=told)
    for query in ("", "?x=mine", "?next=/mine"):
        assert "secret" not in another_visitor.open(f"/signup{query}").text
