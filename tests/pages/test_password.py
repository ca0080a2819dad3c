"""Changing the password, by someone who knows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select, update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_password_change import NEW, count, forget, on_embedded, owner, reset_link, sign_in
from tests.factories import only_user
from webapp.accounts import authentication, password_change, passwords, sessions
from webapp.accounts.users import User
from webapp.db.base import db

Send = Callable[[], None]

__all__ = ["owner"]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {
        **environ,
        "RATELIMIT_ENABLED": "true",
        "RATELIMIT_LOGIN_KNOWN": "3/hour",
        "MAIL_LIMIT_PER_ADDRESS": "none",
    }


def change(visitor: Visitor, password: str = PASSWORD, new_password: str = NEW) -> int:
    visitor.open("/account/password")
    return visitor.submit("/account/password", password=password, new_password=new_password).status_code


def test_a_changed_password_signs_out_everywhere_else_and_its_owner_is_told(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    assert sign_in(another_visitor, PASSWORD) == "/account"
    former = dict(owner.http.cookies)
    assert change(owner) == 200
    assert owner.path == "/account"
    assert "You were signed out everywhere else." in owner.text
    # This browser has a new session now.
    assert dict(owner.http.cookies) != former
    thief = Visitor("http://signup.example", app)
    thief.http.cookies.update(former)
    for browser in (another_visitor, thief):
        assert browser.open("/account").url.path == "/login"
    send_due()
    assert smtp.mails[-1].message["Subject"] == "Your Acme password was changed"
    assert sign_in(another_visitor, PASSWORD) == "/login"
    assert sign_in(another_visitor, NEW) == "/account"
    assert count(app, "password_changed") == 1


def test_who_does_not_know_the_password_changes_nothing_and_is_soon_refused(
    owner: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    kept = only_user(app).password_hash
    for _ in range(3):
        assert change(owner, password="staple battery horse") == 422
        assert "That password is wrong." in owner.text
    # Even with the right one.
    assert change(owner) == 429
    assert only_user(app).password_hash == kept
    send_due()
    assert len(smtp.mails) == 1


@on_embedded
@pytest.mark.parametrize("new_password", ["", "short", "mick19mick19", "x" * 129])
def test_a_password_that_is_none_is_told_beside_its_field(owner: Visitor, app: Flask, new_password: str) -> None:
    kept = only_user(app).password_hash
    assert change(owner, new_password=new_password) == 422
    assert 'id="new_password-error"' in owner.page.text
    assert only_user(app).password_hash == kept


@on_embedded
def test_only_who_is_signed_in_changes_it_and_with_a_fresh_token(owner: Visitor, another_visitor: Visitor) -> None:
    another_visitor.open("/account/password")
    assert another_visitor.path == "/login"
    owner.open("/account/password")
    owner.submit("/account/password", password=PASSWORD, new_password=NEW, csrf_token="")
    assert owner.page.status_code == 400
    assert "Nothing was changed" in owner.text


def test_a_changed_password_voids_the_links_to_set_another(
    owner: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    forget(another_visitor)
    send_due()
    change(owner)
    assert another_visitor.open(reset_link(smtp)).status_code == 404


def test_a_sign_in_that_a_change_overtook_begins_no_session(owner: Visitor, app: Flask) -> None:
    with app.app_context():
        user = authentication.authenticate("mick19", PASSWORD)
        assert user is not None
        with db.engine.begin() as meanwhile:
            meanwhile.execute(update(User).values(password_hash=passwords.hash(NEW)))
        with pytest.raises(sessions.PasswordChanged):
            sessions.begin(user)
        assert len(db.session.scalars(select(sessions.UserSession)).all()) == 1


def test_of_two_changes_at_once_one_wins(owner: Visitor, app: Flask) -> None:
    with app.app_context():
        one = db.session.scalars(select(User)).one()
        db.session.commit()
        with db.engine.begin() as meanwhile:
            meanwhile.execute(update(User).values(password_hash=passwords.hash(NEW)))
        with pytest.raises(sessions.PasswordChanged):
            password_change.change_password(one, passwords.hash("yet another password"))
    assert sign_in(owner, NEW) == "/account"
