"""A browser, link, code or message refers to the row that it was made for, or to nothing."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from flask import Flask, request
from flask.sessions import SecureCookieSessionInterface
from limits import parse_many
from sqlalchemy import Integer, delete, func, select, text

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import code_in, type_code
from tests.accounts.test_email_change import another_member, ask, is_signed_in
from tests.conftest import LANGUAGES
from tests.factories import travel, work
from tests.pages.test_login import stolen
from tests.test_retention import prune
from webapp.accounts import roles, signup
from webapp.accounts.codes import CodeTry
from webapp.accounts.users import User
from webapp.config import LIMITS
from webapp.db.base import Base, db
from webapp.delivery import tasks
from webapp.outbox.outgoing_email import OutgoingEmail

Send = Callable[[], None]

NEW_PASSWORD = "another horse battery"  # noqa: S105 - a test's own

# Everything that a waiting page can do.
ACTS: list[tuple[str, dict[str, Any]]] = [
    ("/signup/resend", {}),
    ("/signup/email", {"email": "attacker@example.com"}),
    *[("/signup/code", {"code": "000000"})] * 6,
    *([("/language", {"language": "th"})] if "th" in LANGUAGES else []),
]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    """Limits on, but none set: each test sets the one that it is about."""
    return {**environ, "RATELIMIT_ENABLED": "true", **dict.fromkeys(LIMITS, "none")}


def users(app: Flask) -> list[User]:
    with app.app_context():
        return list(db.session.scalars(select(User).order_by(User.id)))


def assert_powerless(old: Visitor, victim: str) -> None:
    """The old browser sees nothing of the victim, and nothing that it sends has any effect."""
    token = re.search(r'name="csrf_token" value="([^"]+)"', old.open("/login").text)
    assert token
    for url in ("/signup/sent", "/signup/sent/progress", "/verify", "/forgot/sent", "/account"):
        assert victim not in old.open(url).text
    for act, fields in ACTS:
        page = old.http.post(act, data={"csrf_token": token[1], **fields})
        assert page.url.path in {"/signup", "/signup/sent", "/"}, act
        assert victim not in page.text


def untouched(app: Flask, address: str) -> tuple[Any, ...]:
    """Return what an old browser must not change for whoever has this address."""
    with app.app_context():
        user = db.session.scalars(select(User).where(User.email == address)).one()
        tries = db.session.scalar(select(func.count()).where(CodeTry.user_id == user.id))
        mails = db.session.scalar(select(func.count()).where(OutgoingEmail.user_id == user.id))
        return user.id, user.email, user.locale, user.email_verified_at, user.password_hash, tries, mails


# Deleted, purged, restored.


def test_a_number_is_not_given_out_again_when_its_account_is_deleted_or_purged(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    type_code(visitor, code_in(smtp.mails[-1]))
    (first,) = users(app)
    visitor.open("/account/delete")
    visitor.submit("/account/delete", password=PASSWORD)
    Visitor("http://signup.example", app).sign_up()
    (second,) = users(app)
    assert second.id > first.id
    travel(app, 8 * 86400)
    prune(app)
    assert users(app) == []
    Visitor("http://signup.example", app).sign_up()
    (third,) = users(app)
    assert third.id > second.id


@pytest.fixture(params=["the account was deleted", "the signup was purged", "a backup was restored"])
def reuse(request: pytest.FixtureRequest, app: Flask) -> Callable[[Visitor, Server], None]:
    """Frees the number of the visitor's user, and lets the database assign it again."""

    def delete_account(visitor: Visitor, smtp: Server) -> None:
        type_code(visitor, code_in(smtp.mails[-1]))
        visitor.open("/account/delete")
        visitor.submit("/account/delete", password=PASSWORD)

    def purge(_visitor: Visitor, _smtp: Server) -> None:
        travel(app, 8 * 86400)
        prune(app)
        travel(app, -8 * 86400)

    def restore(_visitor: Visitor, _smtp: Server) -> None:
        with app.app_context():
            db.session.execute(delete(OutgoingEmail))
            db.session.execute(delete(User))
            db.session.commit()

    ways = {
        "the account was deleted": delete_account,
        "the signup was purged": purge,
        "a backup was restored": restore,
    }

    def act(visitor: Visitor, smtp: Server) -> None:
        ways[request.param](visitor, smtp)
        rewind(app)

    return act


def rewind(app: Flask) -> None:
    """Let the next rows get the numbers of the deleted ones, as after a restored backup."""
    with app.app_context():
        for table in db.metadata.sorted_tables:
            if "id" in table.c and isinstance(table.c.id.type, Integer):
                highest = db.session.scalar(select(func.max(table.c.id))) or 0
                if db.engine.dialect.name == "postgresql":
                    sequence = text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :next, false)")
                    db.session.execute(sequence, {"name": table.name, "next": highest + 1})
                else:
                    numbered = text("UPDATE sqlite_sequence SET seq = :highest WHERE name = :name")
                    db.session.execute(numbered, {"name": table.name, "highest": highest})
        db.session.commit()


def test_a_cookie_whose_number_is_another_persons_by_now_is_nobodys(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server, reuse: Callable[[Visitor, Server], None]
) -> None:
    visitor.sign_up()
    send_due()
    (first,) = users(app)
    old = stolen(visitor, app)
    reuse(visitor, smtp)
    victim = Visitor("http://signup.example", app)
    victim.sign_up(username="vera", email="vera@example.com")
    assert [user.id for user in users(app)] == [first.id]
    before = untouched(app, "vera@example.com")
    assert_powerless(old, "vera")
    assert untouched(app, "vera@example.com") == before
    send_due()
    type_code(victim, code_in(smtp.mails[-1]))
    assert victim.path == "/account"


def test_links_codes_sessions_and_messages_of_who_is_gone_are_nobodys(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    (old_user,) = users(app)
    link, code = smtp.mails[-1].link, code_in(smtp.mails[-1])
    waiting = stolen(visitor, app)
    visitor.open(link)
    opened = stolen(visitor, app)
    visitor.submit("/verify")
    signed_in = stolen(visitor, app)
    visitor.open("/account/sessions")
    (device,) = re.findall(r'action="(/account/sessions/[^"]+/end)"', visitor.page.text)
    visitor.open("/forgot")
    visitor.submit("/forgot", email="mick@example.com")
    send_due()
    reset = smtp.mails[-1].link
    ask(visitor)
    send_due()
    change = smtp.mails[-1].link
    with app.app_context():
        old_mails = list(db.session.scalars(select(OutgoingEmail.id)))
        db.session.execute(delete(OutgoingEmail))
        db.session.execute(delete(User))
        db.session.commit()
    rewind(app)
    vera = another_member(app, send_due, smtp, "vera", "vera@example.com")
    assert [user.id for user in users(app)] == [old_user.id]
    sent = len(smtp.mails)
    before = untouched(app, "vera@example.com")
    for address in (link, reset, change):
        assert Visitor("http://signup.example", app).open(address).status_code == 404
    assert opened.open("/verify").status_code == 404
    assert not is_signed_in(signed_in)
    vera.open("/account/sessions")
    (own,) = re.findall(r'action="(/account/sessions/[^"]+/end)"', vera.page.text)
    vera.http.post(device, data=vera.hidden(own))
    assert is_signed_in(vera)
    for email_id in old_mails:
        with app.app_context():
            tasks.deliver_later(email_id)
    work(app)
    assert_powerless(waiting, "vera")
    waiting.open("/login")
    waiting.http.post("/signup/code", data={"code": code})
    assert not is_signed_in(waiting)
    assert untouched(app, "vera@example.com") == before
    assert len(smtp.mails) == sent


def test_a_limit_of_who_is_gone_is_not_the_next_ones(app: Flask, send_due: Send, smtp: Server) -> None:
    app.config["RATELIMIT_RESEND"] = parse_many("1/hour")
    numbers = []
    for _ in range(2):
        member = another_member(app, send_due, smtp, "mick19", "mick@example.com")
        numbers += [user.id for user in users(app)]
        for status in (200, 429):
            member.open("/account/profile")
            assert member.submit("/account/profile", username="mick19", full_name="Mick").status_code == status
        with app.app_context():
            db.session.execute(delete(OutgoingEmail))
            db.session.execute(delete(User))
            db.session.commit()
        rewind(app)
    assert numbers[0] == numbers[1]


# PostgreSQL's sequences never go back.
@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_a_number_is_given_out_once_wherever_rows_are_numbered(app: Flask) -> None:
    """Except for tables with a single row, whose number is 1, and your own."""
    with app.app_context():
        numbered = {
            mapper.class_.__tablename__
            for mapper in Base.registry.mappers
            if mapper.class_.__module__.startswith("webapp.") and isinstance(mapper.primary_key[0].type, Integer)
        }
        once = db.session.scalars(text("SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'")).all()
    assert numbered - set(once) == {"mail_breaker", "mail_pace", "mail_pause"}


# Taken over, outrun.


@pytest.fixture
def attacker(visitor: Visitor, send_due: Send) -> Visitor:
    """Someone who signed up with another person's address; that person got the email."""
    visitor.sign_up(username="attacker", email="vera@example.com")
    send_due()
    return visitor


def take_over(owner: Visitor, smtp: Server) -> None:
    owner.open(smtp.mails[0].link)
    owner.submit("/verify", new_password=NEW_PASSWORD)
    assert owner.path == "/account"


def test_a_signup_that_its_owner_took_over_is_the_owners_alone(
    attacker: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    page = attacker.open("/signup/sent")
    take_over(another_visitor, smtp)
    # Whatever the owner does with the account afterwards.
    ask(another_visitor, "v.new@example.com", NEW_PASSWORD)
    send_due()
    before = untouched(app, "vera@example.com")
    attacker.page = page
    for act, fields in ACTS:
        attacker.submit(act, **fields)
        assert attacker.path == "/signup/sent"
        assert "example.com" not in attacker.page.text
        attacker.page = page
    attacker.open("/signup/sent?language=th")
    assert untouched(app, "vera@example.com") == before
    # It did not use up tries of the owner's own code either.
    another_visitor.open("/account/email")
    another_visitor.submit("/account/email/code", code=code_in(smtp.mails[-1]))
    assert another_visitor.path == "/account"
    attacker.open("/signup/sent?language=en")
    assert "Your email address is confirmed" in attacker.text
    travel(app, 2)
    part = attacker.open("/signup/sent/progress")
    assert (part.text, part.headers["hx-redirect"]) == ("", "/signup/sent")


def test_a_code_that_is_typed_while_the_owner_takes_over_is_no_try_of_the_owners(
    attacker: Visitor, another_visitor: Visitor, app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking up its user and keeping others from confirming."""
    attacker.open("/signup/sent")
    find, owners = signup.find, [another_visitor]

    def find_and_wait(signup_id: uuid.UUID) -> User | None:
        user = find(signup_id)
        if owners and request.path == "/signup/code":
            # On SQLite nobody can at this point.
            db.session.commit()
            owner = owners.pop()
            taking_over = Thread(target=take_over, args=(owner, smtp))
            taking_over.start()
            taking_over.join()
        return user

    monkeypatch.setattr(signup, "find", find_and_wait)
    attacker.submit("/signup/code", code="000000")
    assert not owners
    assert attacker.path == "/signup/sent"
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(CodeTry)) == 0


@pytest.mark.thai
def test_a_signup_that_the_owner_outran_goes_on_and_touches_nothing_of_the_owners(
    attacker: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.sign_up(username="vera", email="vera@example.com", password=NEW_PASSWORD)
    send_due()
    type_code(another_visitor, code_in(smtp.mails[-1]))
    assert another_visitor.path == "/account"
    with app.app_context():
        owner = roles.find("vera")
        assert owner is not None
    attacker.open("/signup/sent")
    assert "vera@example.com" in attacker.text
    for _ in range(5):
        attacker.submit("/signup/code", code="000000")
        assert "That code is wrong or has expired" in attacker.text
    attacker.submit("/language", language="th")
    attacker.submit("/signup/email", email="attacker@example.com")
    ask(another_visitor, "v.new@example.com", NEW_PASSWORD)
    send_due()
    another_visitor.open("/account/email")
    another_visitor.submit("/account/email/code", code=code_in(smtp.mails[-1]))
    assert another_visitor.path == "/account"
    with app.app_context():
        now = db.session.get_one(User, owner.id)
        assert (now.email, now.locale, now.password_hash) == ("v.new@example.com", "en", owner.password_hash)


# One signup, whatever becomes of its address.


def test_a_waiting_browser_follows_its_signup_to_another_address_from_wherever_that_was_changed(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert another_visitor.path == "/signup/sent"
    another_visitor.submit("/signup/email", email="mick@example.org")
    assert "mick@example.org" in visitor.open("/signup/sent").text
    send_due()
    type_code(visitor, code_in(smtp.mails[-1]))
    assert visitor.path == "/account"
    another_visitor.open("/signup/sent")
    assert "Your email address is confirmed" in another_visitor.text


def test_a_cookie_of_the_former_kind_is_no_signup(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    (user,) = users(app)
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer
    former = serializer.dumps({"signup": {"user_id": user.id, "at": int(time.time())}})
    old = stolen(visitor, app)
    for cookie in old.http.cookies.jar:
        cookie.value = former
    assert old.open("/signup").status_code == 200
    assert "already" not in old.text
    assert_powerless(old, "mick")
    old.open("/signup/sent")
    assert old.path == "/signup"
    # The password still works.
    old.open("/login")
    old.submit("/login", identifier="mick19", password=PASSWORD)
    assert old.path == "/signup/sent"
