"""What people do with their own accounts: change names, sign out devices, download their data, delete the account."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select, update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_email_change import another_member, ask, change, events, is_signed_in, on_embedded, sign_in
from tests.accounts.test_locked import lock, unlock
from tests.cli.test_cli import flask_mail
from tests.factories import travel
from tests.pages.test_verify import everything
from tests.test_operations import flask_users
from tests.test_retention import prune
from webapp import audit
from webapp.accounts import account, email_change, sessions, users
from webapp.accounts.codes import CodeTry
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.sessions import UserSession
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail

Send = Callable[[], None]

ANDROID = "Mozilla/5.0 (Android 14; Mobile; rv:130.0) Gecko/130.0 Firefox/130.0"


def everywhere(app: Flask) -> str:
    return json.dumps(everything(app), default=str)


# Names.


def test_a_username_and_a_full_name_can_be_changed_and_the_owner_is_told(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    member.open("/account/profile")
    assert 'value="mick19"' in member.page.text
    member.submit("/account/profile", username="Zoë.x", full_name="Zoë Example")
    assert member.path == "/account"
    assert "Welcome, Zoë Example" in member.text
    assert "Zoë.x" in member.text
    send_due()
    (mail,) = smtp.mails
    assert mail.message["Subject"] == "Your Acme username was changed"
    assert "Zo" not in mail.text
    assert not sign_in(Visitor("http://signup.example", app), "mick19")
    assert sign_in(Visitor("http://signup.example", app), "ZOË.X")
    assert events(app, "renamed") == 1
    # A respelling of your own username does not count as somebody else's, and a full name alone triggers no notice.
    member.open("/account/profile")
    member.submit("/account/profile", username="zoë.x", full_name="")
    assert member.path == "/account"
    assert "Welcome, zoë.x" in member.text


@on_embedded
def test_a_name_that_does_not_do_is_told_and_nothing_is_changed(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_member(app, send_due, smtp, "rival", "rival@example.com")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"username": "RIVAL"}, "That username is taken"),
        ({"username": "not@name"}, "Please use only letters"),
        ({"username": ""}, "Please choose a username."),
        ({"full_name": "x" * 101}, "Please use at most 100 characters."),
        ({"full_name": "a\r\nb"}, "Please leave out line breaks"),
        ({"csrf_token": "bad"}, "This page expired"),
    ]
    for typed, told in wrong:
        member.open("/account/profile")
        member.submit("/account/profile", **{"username": "mick19", "full_name": "", **typed})
        assert member.page.status_code in {400, 422}
        assert told in member.text
    assert events(app, "renamed") == 0


# Devices.


def test_each_device_is_told_in_words_and_one_or_all_others_can_be_signed_out(
    member: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    another_visitor.http.headers["User-Agent"] = ANDROID
    assert sign_in(another_visitor)
    third = Visitor("http://signup.example", app, ip="192.0.2.7")
    assert sign_in(third)
    travel(app, 2 * 3600)
    member.open("/account/sessions")
    assert "Unknown browser This device" in member.text
    assert "Firefox on Android Last active 2 hours ago · from 127.0.0.1" in member.text
    assert "from 192.0.2.7" in member.text
    (android,) = [one.token_hash for one in rows(app, UserSession) if one.system == "Android"]
    member.submit(f"/account/sessions/{android}/end")
    assert "That device was signed out." in member.text
    assert not is_signed_in(another_visitor)
    assert is_signed_in(third)
    assert sign_in(another_visitor)
    member.open("/account/sessions")
    member.submit("/account/sessions/end-others")
    assert "All other devices were signed out." in member.text
    assert not is_signed_in(another_visitor)
    assert not is_signed_in(third)
    assert is_signed_in(member)
    member.open("/account/sessions")
    assert "end-others" not in member.page.text
    (own,) = [one.token_hash for one in rows(app, UserSession) if one.revoked_at is None]
    member.submit(f"/account/sessions/{own}/end")
    assert member.path == "/login"
    assert "You're signed out." in member.text
    assert not is_signed_in(member)


def test_of_very_many_devices_that_which_was_not_used_for_longest_is_signed_out(
    member: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    (own,) = rows(app, UserSession)
    with app.app_context():
        for n in range(sessions.MOST + 20):
            used = {"created_at": own.created_at, "seen_at": own.seen_at - timedelta(minutes=n)}
            db.session.add(UserSession(token_hash=f"{n:064}", user_id=own.user_id, **used))
        db.session.commit()
    assert sign_in(another_visitor)
    alive = {one.token_hash for one in rows(app, UserSession) if one.revoked_at is None}
    assert len(alive) == sessions.MOST
    assert f"{0:064}" in alive
    assert f"{sessions.MOST + 19:064}" not in alive
    assert is_signed_in(member)
    member.open("/account/sessions")
    assert member.page.text.count("/end") == sessions.MOST + 1


def rows(app: Flask, model: type[UserSession]) -> list[UserSession]:
    with app.app_context():
        return list(db.session.scalars(select(model).order_by(model.id)))


@on_embedded
def test_nobody_signs_out_somebody_else(member: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    rival = another_member(app, send_due, smtp, "rival", "rival@example.com")
    own, others = (one.token_hash for one in rows(app, UserSession))
    member.open("/account/sessions")
    token = member.hidden(f"/account/sessions/{own}/end")
    member.http.post(f"/account/sessions/{others}/end", data=token)
    assert is_signed_in(rival)


@on_embedded
def test_what_was_seen_is_noted_once_an_hour_and_where(member: Visitor, app: Flask) -> None:
    with app.app_context():
        db.session.execute(update(UserSession).values(address=None))
        db.session.commit()
    member.open("/account/sessions")
    assert "from 127.0.0.1" not in member.text
    travel(app, sessions.SEEN_SECONDS + 1)
    # It is noted after this page was answered.
    member.open("/account/sessions")
    member.open("/account/sessions")
    assert "from 127.0.0.1" in member.text


# Data.


def test_the_export_has_what_is_the_persons_own_and_no_secret(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_member(app, send_due, smtp, "rival", "rival@example.com")
    change(member, send_due, smtp)
    member.open("/account/export")
    answer = member.submit("/account/export")
    assert answer.headers["content-type"] == "application/json"
    assert "attachment" in answer.headers["content-disposition"]
    told = answer.json()
    assert told["account"]["username"] == "mick19"
    assert told["account"]["email"] == "new@example.com"
    assert [one["ip_address"] for one in told["sessions"]] == ["127.0.0.1"]
    assert [(mail["about"], mail["to"]) for mail in told["mails"]] == [
        ("signup", "mick@example.com"),
        ("change", "new@example.com"),
        ("revoke", "mick@example.com"),
    ]
    assert [event["action"] for event in told["events"]][:3] == ["signed_up", "verified", "signed_in"]
    assert "rival" not in answer.text
    with app.app_context():
        secrets = [*db.session.scalars(select(User.password_hash)), *db.session.scalars(select(UserSession.token_hash))]
    assert not [secret for secret in secrets if secret in answer.text]
    assert smtp.mails[-1].link.rpartition("/")[2] not in answer.text
    assert events(app, "exported") == 1


def test_the_export_tells_what_operators_did_and_not_where_they_are(member: Visitor, app: Flask) -> None:
    def act() -> None:
        audit.actor.set("user 2 (operator)")
        audit.client_ip.set("203.0.113.99")
        assert lock(app)
        assert unlock(app)

    copy_context().run(act)
    assert sign_in(member)
    member.open("/account/export")
    told = member.submit("/account/export")
    where = {event["action"]: event["ip_address"] for event in told.json()["events"]}
    assert (where["locked"], where["unlocked"], where["signed_in"]) == (None, None, "127.0.0.1")
    assert "203.0.113.99" not in told.text


# Deletion.


def test_a_deleted_account_is_gone_with_all_that_is_its_own(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    assert sign_in(another_visitor)
    member.open("/account/profile")
    member.submit("/account/profile", username="mick20", full_name="Mick Example")
    ask(member)
    waiting = 2
    member.open("/account/delete")
    for wrong in ("", "not the password"):
        member.submit("/account/delete", password=wrong)
        assert member.page.status_code == 422
    member.submit("/account/delete", password=PASSWORD)
    assert member.path == "/login"
    assert "Your account was deleted." in member.text
    member.open("/")
    assert "Your account was deleted." not in member.text
    for visitor in (member, another_visitor):
        assert not is_signed_in(visitor)
    with app.app_context():
        statuses = list(db.session.scalars(select(OutgoingEmail.status)))
        assert statuses.count("canceled") == waiting
        assert db.session.scalar(select(func.count()).select_from(User)) == 0
        assert db.session.scalar(select(func.count()).select_from(UserSession)) == 0
    # What happened is still known, but not to whom.
    assert events(app, "account_deleted") == 1
    assert events(app, "verified") == 1
    send_due()
    (mail,) = smtp.mails
    assert mail.recipients == ["mick@example.com"]
    assert mail.message["Subject"] == "Your Acme account was deleted"
    assert not sign_in(member)
    # A day later the address and the names are gone.
    travel(app, 86401)
    prune(app)
    kept = everywhere(app)
    for own in ("mick", "Mick", "new@example.com"):
        assert own not in kept
    # And an email that an operator revives is not sent.
    with app.app_context():
        db.session.execute(update(OutgoingEmail).values(status="dead"))
        db.session.commit()
    smtp.mails.clear()
    assert flask_mail(app, "retry", "--dead").exit_code == 0
    send_due()
    assert not smtp.mails


def test_whoever_deleted_the_account_can_sign_up_again(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    member.open("/account/delete")
    member.submit("/account/delete", password=PASSWORD)
    send_due()
    again = another_member(app, send_due, smtp, "mick19", "mick@example.com")
    assert is_signed_in(again)


@on_embedded
@pytest.mark.parametrize(
    "act",
    [
        account.end,
        partial(account.rename, username="other", full_name=""),
        partial(
            email_change.ask, address=email_addresses.Address("new@example.com", "new@example.com"), session_token="x"
        ),
    ],
)
def test_who_is_deleted_at_that_moment_is_led_to_signing_in(
    member: Visitor, app: Flask, act: Callable[[User], object]
) -> None:
    with app.app_context():
        user = db.session.scalars(select(User)).one()
        db.session.commit()
        assert account.end(user)
        with pytest.raises(users.UserGone):
            act(user)
    member.page = member.http.post("/account/profile", data={"username": "other"})
    assert member.path == "/login"


def test_two_deletions_at_once_are_one(member: Visitor, app: Flask) -> None:
    member.open("/account/delete")
    data = {**member.hidden("/account/delete"), "password": PASSWORD}
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(lambda _n: member.http.post("/account/delete", data=data), range(4)))
    assert {page.status_code for page in pages} == {200}
    assert {page.url.path for page in pages} <= {"/", "/login"}
    assert events(app, "account_deleted") == 1


def test_a_code_that_was_guessed_counts_for_its_day_whoever_is_deleted(
    member: Visitor, app: Flask, send_due: Send
) -> None:
    ask(member)
    send_due()
    member.open("/account/email")
    member.submit("/account/email/code", code="1")
    member.open("/account/delete")
    member.submit("/account/delete", password=PASSWORD)
    prune(app)
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(CodeTry)) == 1
    travel(app, 86401)
    prune(app)
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(CodeTry)) == 0


def test_operators_see_mails_and_users_as_before_when_one_is_changed_or_deleted(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    admin = another_member(app, send_due, smtp, "boss", "boss@example.com")
    assert flask_users(app, "promote", "boss").exit_code == 0
    change(member, send_due, smtp)
    assert flask_users(app, "promote", "new@example.com").exit_code == 0
    member.open("/account/delete")
    member.submit("/account/delete", password=PASSWORD)
    send_due()
    travel(app, 86401)
    prune(app)
    with app.app_context():
        mails = [str(email_id) for email_id in db.session.scalars(select(OutgoingEmail.id))]
    for path in ("/ops", "/ops/mails", "/ops/audit", *[f"/ops/mails/{email_id}" for email_id in mails]):
        assert admin.open(path).status_code == 200, path
    for command in (["list"], ["stats"], ["doctor"], *[["show", email_id] for email_id in mails]):
        assert flask_mail(app, *command).exit_code in {0, 1}, command
    assert "new@example.com" not in flask_users(app, "list", "--json").output


def test_links_are_forgotten_with_the_mails_that_brought_them(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    change(member, send_due, smtp)
    travel(app, 89 * 86400)
    prune(app)
    assert links(app) == ["change", "revoke", "signup"]
    travel(app, 2 * 86400)
    prune(app)
    prune(app)
    assert links(app) == ["signup"]


def links(app: Flask) -> list[str]:
    with app.app_context():
        purposes = db.session.execute(db.text("SELECT purpose FROM verify_emails ORDER BY purpose"))
        return [purpose for (purpose,) in purposes]


def test_of_those_who_take_one_name_at_once_one_has_it(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_member(app, send_due, smtp, "rival", "rival@example.com")

    def take(name: str) -> bool:
        with app.app_context():
            user = db.session.scalars(select(User).where(User.username == name)).one()
            try:
                account.rename(user, username="wanted", full_name="")
            except users.UsernameTaken:
                return False
            return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(take, ["mick19", "rival"])) == [False, True]
