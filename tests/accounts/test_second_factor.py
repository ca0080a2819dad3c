"""The second factor: setup, sign-in, limits, recovery, reset; and useless to anyone who reads the rows."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pyotp
import pytest
from flask import Flask
from limits import parse_many
from sqlalchemy import func, select, update

from harness.smtp_server import Mail, Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_email_change import is_signed_in, on_embedded, sign_in
from tests.accounts.test_locked import ANOTHER, forget, lock, of
from tests.cli.test_cli import flask_mail
from tests.factories import travel
from tests.pages.test_ops import admin, operator
from tests.pages.test_verify import everything
from tests.test_operations import flask_users
from tests.test_retention import prune
from webapp import create_app
from webapp.accounts import sessions, users
from webapp.accounts.second_factor import factor
from webapp.accounts.second_factor.factor import RecoveryCode, SecondFactor, SecondFactorTry
from webapp.accounts.sessions import UserSession
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import relay
from webapp.outbox.outgoing_email import OutgoingEmail

__all__ = ["admin"]

Send = Callable[[], None]

PAGE = "/account/second-factor"
CODE = "/login/code"

FIREFOX = "Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0"


class Phone:
    """An authenticator app that scanned the QR code on a visitor's page, and a sheet of recovery codes."""

    def __init__(self, visitor: Visitor, app: Flask) -> None:
        self.app = app
        found = re.search(r'<code class="secret-key">([A-Z2-7 ]+)</code>', visitor.page.text)
        assert found, visitor.text
        self.secret = found[1].replace(" ", "")
        self.sheet: list[str] = []

    def code(self, seconds: int = 0) -> str:
        """Return the code for so many seconds from now, once the previous one has expired."""
        with self.app.app_context():
            db.session.execute(update(SecondFactor).values(code_time=None))
            db.session.commit()
        return self.shown(seconds)

    def shown(self, seconds: int = 0) -> str:
        return pyotp.TOTP(self.secret).at(datetime.now(UTC) + timedelta(seconds=seconds))

    def wrong(self) -> str:
        right = {self.shown(seconds) for seconds in range(-90, 91, 30)}
        return next(
            code
            for code in ("111111", "222222", "333333", "444444", "555555", "666666", "777777", "888888")
            if code not in right
        )


def scan(visitor: Visitor, app: Flask) -> Phone:
    visitor.open(PAGE)
    visitor.submit(PAGE, password=PASSWORD)
    return Phone(visitor, app)


def turn_on(visitor: Visitor, app: Flask) -> Phone:
    phone = scan(visitor, app)
    visitor.submit(f"{PAGE}/confirm", code=phone.code())
    phone.sheet = re.findall(r"<code>([a-z2-9-]{19})</code>", visitor.page.text)
    assert len(phone.sheet) == 10, visitor.text
    return phone


@pytest.fixture
def phone(admin: Visitor, app: Flask) -> Phone:
    """The phone of an admin whose second factor is on."""
    return turn_on(admin, app)


def give_password(visitor: Visitor, query: str = "") -> None:
    visitor.open(f"/login{query}")
    visitor.submit(f"/login{query}", identifier="admin", password=PASSWORD)
    assert visitor.path == CODE, visitor.text


def give_code(visitor: Visitor, code: str = "", recovery_code: str = "") -> bool:
    visitor.submit(CODE, code=code, recovery_code=recovery_code)
    return visitor.path == "/account"


def count(app: Flask, model: type[Any]) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(model)) or 0


def acts(app: Flask, like: str = "%") -> list[str]:
    with app.app_context():
        query = select(AuditEvent.action).where(AuditEvent.action.like(like)).order_by(AuditEvent.id)
        return list(db.session.scalars(query))


# Setup.


def test_who_has_a_role_sets_it_up_with_an_app_and_gets_ten_recovery_codes_once(admin: Visitor, app: Flask) -> None:
    assert "Second factor Not set up" in admin.open("/account").text.replace("</strong> <small>", " ")
    phone = scan(admin, app)
    assert admin.path == PAGE
    assert re.search(r'<div class="qr" role="img"[^>]*><svg viewBox', admin.page.text)
    assert f"otpauth://totp/Acme:admin?secret={phone.secret}&amp;issuer=Acme" in admin.page.text
    # As the page's CSP requires.
    assert "style=" not in admin.page.text
    assert "<style" not in admin.page.text
    admin.submit(f"{PAGE}/confirm", code=phone.code())
    assert "Save your recovery codes" in admin.text
    codes = re.findall(r"[a-z2-9]{4}(?:-[a-z2-9]{4}){3}", admin.text)
    assert len(set(codes)) == 10
    for path in ("/account", PAGE):
        assert "On" in admin.open(path).text
        assert codes[0] not in admin.page.text
        assert phone.secret not in admin.page.text.replace(" ", "")
    assert "You have 10 recovery codes left." in admin.text
    assert acts(app, "second_factor%") == ["second_factor_on"]


@on_embedded
def test_nobody_without_a_role_sees_any_of_it(member: Visitor, another_visitor: Visitor) -> None:
    assert "Second factor" not in member.open("/account").text
    for path in (PAGE, f"{PAGE}/codes", f"{PAGE}/off"):
        assert member.open(path).status_code == 404
        assert another_visitor.open(path).url.path == "/login"


@on_embedded
def test_it_takes_the_password_and_is_on_only_once_the_first_code_was_right(
    admin: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    admin.open(PAGE)
    admin.submit(PAGE, password="wrong")
    assert "That password is wrong" in admin.text
    assert count(app, SecondFactor) == 0
    phone = scan(admin, app)
    admin.submit(f"{PAGE}/confirm", code=phone.wrong())
    assert "That code is wrong" in admin.text
    assert phone.secret in admin.page.text.replace(" ", "")
    assert sign_in(another_visitor, "admin")
    admin.submit(f"{PAGE}/confirm", code=phone.code())
    assert "Save your recovery codes" in admin.text


@on_embedded
def test_the_secret_is_shown_only_for_minutes_after_the_password(admin: Visitor, app: Flask) -> None:
    phone = scan(admin, app)
    travel(app, sessions.REAUTH_SECONDS + 1)
    assert phone.secret not in admin.open(PAGE).text.replace(" ", "")
    assert "Set up a second factor" in admin.text
    # And a different one after the password was entered again.
    assert scan(admin, app).secret != phone.secret


def test_turning_it_on_signs_out_all_who_did_not_show_it(admin: Visitor, another_visitor: Visitor, app: Flask) -> None:
    assert sign_in(another_visitor, "admin")
    turn_on(admin, app)
    assert is_signed_in(admin)
    assert not is_signed_in(another_visitor)
    # And no session begins with a password that was right just before.
    with app.test_request_context(), pytest.raises(sessions.PasswordChanged):
        sessions.begin(of(app, "admin"))


@on_embedded
def test_new_recovery_codes_take_both_and_end_the_old_ones(
    admin: Visitor, another_visitor: Visitor, phone: Phone, app: Flask
) -> None:
    admin.open(f"{PAGE}/codes")
    admin.submit(f"{PAGE}/codes", password=PASSWORD, code=phone.wrong())
    assert "That code is wrong or was used already" in admin.text
    admin.submit(f"{PAGE}/codes", password="wrong", code=phone.code())
    assert "That password is wrong" in admin.text
    admin.submit(f"{PAGE}/codes", password=PASSWORD, code=phone.code())
    new = re.findall(r"<code>([a-z2-9-]{19})</code>", admin.page.text)
    assert len(set(new) - set(phone.sheet)) == 10
    give_password(another_visitor)
    assert not give_code(another_visitor, recovery_code=phone.sheet[0])
    assert give_code(another_visitor, recovery_code=new[0])


def test_turning_it_off_takes_password_and_code(
    admin: Visitor, another_visitor: Visitor, phone: Phone, app: Flask
) -> None:
    admin.open(f"{PAGE}/off")
    for password, code in (("wrong", phone.code()), (PASSWORD, phone.wrong()), (PASSWORD, "")):
        admin.submit(f"{PAGE}/off", password=password, code=code)
        assert admin.page.status_code == 422
    admin.submit(f"{PAGE}/off", password=PASSWORD, code=phone.code())
    assert "Your second factor was turned off." in admin.text
    assert [count(app, model) for model in (SecondFactor, RecoveryCode, SecondFactorTry)] == [0, 0, 0]
    assert sign_in(another_visitor, "admin")
    assert acts(app, "second_factor%") == ["second_factor_on", "second_factor_failed", "second_factor_off"]


@on_embedded
def test_whoever_loses_the_role_keeps_it_and_can_turn_it_off(admin: Visitor, phone: Phone, app: Flask) -> None:
    assert flask_users(app, "demote", "admin").exit_code == 0
    admin.open("/account")
    assert "Second factor" in admin.text
    admin.open(f"{PAGE}/off")
    admin.submit(f"{PAGE}/off", password=PASSWORD, code=phone.code())
    assert "Second factor" not in admin.open("/account").text
    assert admin.open(PAGE).status_code == 404


# Sign-in.


def test_signing_in_takes_a_code_and_until_then_there_is_no_session(visitor: Visitor, phone: Phone, app: Flask) -> None:
    before = count(app, UserSession)
    give_password(visitor, "?next=/account/sessions")
    assert "Your password is right" in visitor.text
    assert count(app, UserSession) == before
    held = visitor.http.cookies["session"]
    for path in ("/account", "/account/sessions", "/account/password", PAGE):
        assert visitor.http.get(path).url.path == "/login"
    assert visitor.http.get("/auth").status_code == 401
    assert visitor.http.get("/ops").status_code == 403
    visitor.open(f"{CODE}?next=/account/sessions")
    visitor.submit(f"{CODE}?next=/account/sessions", code="")
    assert "Please enter the six digits." in visitor.text
    code = phone.code()
    visitor.submit(f"{CODE}?next=/account/sessions", code=f" {code[:3]} {code[3:]} ")
    assert visitor.path == "/account/sessions"
    assert visitor.http.get("/auth").status_code == 204
    assert count(app, UserSession) == before + 1
    # The session is a new one, and the step before the code is over.
    assert visitor.http.cookies["session"] != held
    assert visitor.open(CODE).url.path == "/account"
    assert acts(app)[-1] == "signed_in"


@on_embedded
def test_a_wrong_password_looks_the_same_with_and_without_it(app: Flask, admin: Visitor) -> None:
    operator(app, "viewer")
    turn_on(admin, app)
    seen = []
    for name in ("admin", "viewer", "nobody"):
        stranger = Visitor("http://signup.example", app)
        stranger.open("/login")
        stranger.submit("/login", identifier=name, password="wrong", follow=False)
        text = re.sub(r'name="csrf_token"[^>]*', "", stranger.page.text).replace(name, "<name>")
        seen.append((stranger.page.status_code, text))
    assert seen[0] == seen[1] == seen[2]


def test_a_code_works_once(visitor: Visitor, another_visitor: Visitor, phone: Phone) -> None:
    for one in (visitor, another_visitor):
        give_password(one)
    code = phone.code()
    assert give_code(visitor, code)
    assert not give_code(another_visitor, code)
    assert "That code is wrong or was used already" in another_visitor.text
    # Nor does an older one.
    assert not give_code(another_visitor, phone.shown(-30))


def test_a_phone_may_be_half_a_minute_ahead_or_behind_and_no_more() -> None:
    at, codes = datetime(2030, 1, 1, 12, 0, 29, tzinfo=UTC), pyotp.TOTP("JBSWY3DPEHPK3PXP" * 2)
    shown = {drift: codes.at(at + timedelta(seconds=30 * drift)) for drift in range(-3, 4)}
    found = {drift: factor._time_of(code, codes, at) for drift, code in shown.items()}
    begun = datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert found == {
        drift: begun + timedelta(seconds=30 * drift) if abs(drift) <= 1 else None for drift in range(-3, 4)
    }


def test_of_many_who_use_a_code_at_once_one_gets_in(phone: Phone, app: Flask) -> None:
    code, barrier, used = phone.code(), threading.Barrier(6), []

    def use() -> None:
        barrier.wait()
        # Like a form: on SQLite a request that may write says so at the start.
        with app.test_request_context(method="POST"):
            try:
                factor.check(db.session.scalars(select(User)).one(), code, known_by=None)
                db.session.commit()
                used.append(code)
            except factor.CodeWrong:
                pass

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used == [code]


def test_wrong_codes_are_counted_for_the_account_whatever_is_done_between(
    visitor: Visitor, another_visitor: Visitor, phone: Phone, app: Flask
) -> None:
    for guess in range(factor.TRIES):
        one = (visitor, another_visitor)[guess % 2]
        # Entering the right password again and again restores no tries.
        give_password(one)
        assert not give_code(one, phone.wrong())
    give_password(visitor)
    assert not give_code(visitor, phone.code())
    assert "Too many wrong codes. Use a recovery code, or try again tomorrow." in visitor.text
    assert count(app, SecondFactorTry) == factor.TRIES
    assert acts(app, "second_factor_failed") == ["second_factor_failed"] * factor.TRIES
    # Recovery codes cannot be guessed without limit or trace either.
    assert not give_code(visitor, recovery_code="aaaa-bbbb-cccc-dddd")
    assert count(app, SecondFactorTry) == factor.TRIES
    travel(app, factor.DAY + 1)
    prune(app)
    give_password(visitor)
    assert not give_code(visitor, phone.wrong())
    # Yesterday's are forgotten, and a right code resets the count.
    assert count(app, SecondFactorTry) == 1
    assert give_code(visitor, phone.code())
    assert count(app, SecondFactorTry) == 0


@on_embedded
def test_after_too_many_wrong_codes_the_page_takes_a_recovery_code(visitor: Visitor, phone: Phone) -> None:
    give_password(visitor)
    for _ in range(factor.TRIES + 1):
        assert not give_code(visitor, phone.wrong())
    assert "Too many wrong codes. Use a recovery code" in visitor.text
    # As a browser submits the page it got back: with its fields still filled in.
    (kept,) = re.findall(r'<input[^>]* name="code"[^>]*>', visitor.page.text)
    value = re.search(r'value="([^"]*)"', kept)
    assert give_code(visitor, value[1] if value else "", phone.sheet[0])


@on_embedded
def test_browsers_of_before_it_was_on_have_no_counts_of_their_own(
    admin: Visitor, visitor: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    hoards = [visitor, another_visitor]
    for one in hoards:
        one.open("/login")
        one.submit("/login", identifier="admin", password=PASSWORD)
        one.open("/account")
        one.submit("/logout")
    phone = turn_on(admin, app)
    for guess in range(factor.TRIES):
        give_password(hoards[guess % 2])
        assert not give_code(hoards[guess % 2], phone.wrong())
    for one in hoards:
        give_password(one)
        assert not give_code(one, phone.code())
    # The browser that turned it on has one.
    admin.open("/account")
    admin.submit("/logout")
    give_password(admin)
    assert give_code(admin, phone.code())


@on_embedded
def test_the_browser_that_turns_it_off_stays_known(
    admin: Visitor, another_visitor: Visitor, phone: Phone, app: Flask
) -> None:
    app.config["RATELIMIT_LOGIN_ACCOUNT"] = parse_many("2/hour")
    admin.open(f"{PAGE}/off")
    admin.submit(f"{PAGE}/off", password=PASSWORD, code=phone.code())
    admin.open("/account")
    admin.submit("/logout")
    another_visitor.open("/login")
    for password, status in (("wrong", 422), ("wrong", 422), (PASSWORD, 429)):
        another_visitor.submit("/login", identifier="admin", password=password)
        assert another_visitor.page.status_code == status
    assert sign_in(admin, "admin")


def test_sign_ins_with_a_code_are_limited_and_those_without_one_use_up_none(
    visitor: Visitor, phone: Phone, app: Flask
) -> None:
    app.config["RATELIMIT_ACCOUNT"] = parse_many("2/hour")
    for number in range(3):
        for _ in range(3):
            give_password(visitor)
            assert visitor.path == CODE
        if number < 2:
            assert give_code(visitor, phone.code())
            visitor.open("/account")
            visitor.submit("/logout")
    code = phone.code()
    assert not give_code(visitor, code)
    assert visitor.page.status_code == 429
    # It was not used up.
    app.config["RATELIMIT_ACCOUNT"] = parse_many("9/hour")
    visitor.open(CODE)
    assert give_code(visitor, code)


@on_embedded
def test_it_is_not_turned_on_and_off_without_end(admin: Visitor, app: Flask) -> None:
    app.config["RATELIMIT_ACCOUNT"] = parse_many("2/hour")
    phone = turn_on(admin, app)
    for change, status in (("codes", 200), ("off", 200), ("codes", 429), ("off", 429)):
        admin.open(f"{PAGE}/{change}")
        admin.submit(f"{PAGE}/{change}", password=PASSWORD, code=phone.code())
        assert admin.page.status_code == status
        if (change, status) == ("off", 200):
            phone = turn_on(admin, app)
    assert acts(app, "second_factor%") == ["second_factor_on", "second_factor_off", "second_factor_on"]
    # Signing in has another count.
    admin.open("/account")
    admin.submit("/logout")
    give_password(admin)
    assert give_code(admin, phone.code())


@on_embedded
def test_a_second_tab_that_sets_it_up_leads_on(
    admin: Visitor, phone: Phone, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.open(PAGE)
    token = admin.hidden("/logout")
    # Each tab looked before the other one was done.
    monkeypatch.setattr(User, "has_second_factor", False)
    for path, fields in ((PAGE, {"password": PASSWORD}), (f"{PAGE}/confirm", {"code": phone.code()})):
        answer = admin.http.post(path, data={**token, **fields}, follow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (303, PAGE)
    assert count(app, SecondFactor) == 1


@on_embedded
def test_whoever_has_the_password_alone_does_not_keep_the_owner_out(
    admin: Visitor, visitor: Visitor, another_visitor: Visitor, phone: Phone, app: Flask
) -> None:
    give_password(visitor)
    assert give_code(visitor, phone.code())
    visitor.open("/account")
    visitor.submit("/logout")
    give_password(another_visitor)
    for _ in range(factor.TRIES):
        assert not give_code(another_visitor, phone.wrong())
    # In a browser that signed in before, in one that is signed in, and anywhere with a recovery code.
    give_password(visitor)
    assert give_code(visitor, phone.code())
    admin.open(f"{PAGE}/codes")
    admin.submit(f"{PAGE}/codes", password=PASSWORD, code=phone.code())
    assert "Save your recovery codes" in admin.text
    (left, *_) = re.findall(r"<code>([a-z2-9-]{19})</code>", admin.page.text)
    give_password(another_visitor)
    assert not give_code(another_visitor, phone.code())
    assert give_code(another_visitor, recovery_code=left)


@on_embedded
def test_a_recovery_code_works_once_however_it_is_typed(
    visitor: Visitor, another_visitor: Visitor, phone: Phone, app: Flask
) -> None:
    give_password(visitor)
    assert give_code(visitor, recovery_code=f" {phone.sheet[0].upper().replace('-', ' ')} ")
    assert "You have 9 recovery codes left." in visitor.text
    give_password(another_visitor)
    assert not give_code(another_visitor, recovery_code=phone.sheet[0])
    assert "That recovery code is wrong or was used already." in another_visitor.text
    # In the other field too.
    assert give_code(another_visitor, phone.sheet[1])
    assert acts(app, "recovery%") == ["recovery_code_used"] * 2


@pytest.mark.parametrize("ended", ["time", "password", "lock", "reset", "deletion"])
def test_the_way_to_the_code_ends(
    admin: Visitor, visitor: Visitor, phone: Phone, app: Flask, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    give_password(visitor)
    if ended == "time":
        # The cookie has a signed start time.
        monkeypatch.setattr("webapp.pages.shared.auth.CODE_SECONDS", 0.0)
    elif ended == "password":
        admin.open("/account/password")
        admin.submit("/account/password", password=PASSWORD, new_password=ANOTHER, code=phone.code())
        assert "Your password was changed." in admin.text
    elif ended == "lock":
        assert lock(app, "admin")
    elif ended == "reset":
        assert flask_users(app, "reset-second-factor", "admin", "--yes").exit_code == 0
    else:
        # As after a restored backup: the number now belongs to someone else with the same factor and password.
        with app.app_context():
            db.session.execute(update(User).values(created_at=datetime(2020, 1, 1, tzinfo=UTC)))
            db.session.commit()
    before = count(app, UserSession)
    assert not give_code(visitor, phone.code())
    assert visitor.path == "/login"
    assert visitor.open("/account").url.path == "/login"
    assert count(app, UserSession) == before


@on_embedded
def test_a_link_for_a_forgotten_password_asks_for_the_code_too(
    visitor: Visitor, member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    assert flask_users(app, "promote", "mick19").exit_code == 0
    phone = turn_on(member, app)
    link = forget(fresh := Visitor("http://signup.example", app), send_due, smtp)
    fresh.open(link)
    fresh.submit("/reset", password=ANOTHER)
    assert fresh.path == CODE
    assert "Your password was changed." in fresh.text
    assert fresh.http.get("/auth").status_code == 401
    assert give_code(fresh, phone.code())
    assert not is_signed_in(member)


@on_embedded
def test_a_changed_password_keeps_this_session_and_no_other(
    admin: Visitor, another_visitor: Visitor, phone: Phone
) -> None:
    give_password(another_visitor)
    assert give_code(another_visitor, phone.code())
    admin.open("/account/password")
    admin.submit("/account/password", password=PASSWORD, new_password=ANOTHER, code=phone.code())
    assert admin.path == "/account"
    assert not is_signed_in(another_visitor)


# What changes the account, and under /ops.

CHANGES: dict[str, dict[str, Any]] = {
    "/account/delete": {},
    "/account/email": {"email": "other@example.com"},
    "/account/password": {"new_password": ANOTHER},
}


@pytest.mark.parametrize("path", CHANGES)
def test_what_changes_the_account_takes_both(admin: Visitor, phone: Phone, app: Flask, path: str) -> None:
    admin.open(path)
    for password, code, problem in (
        (PASSWORD, "", "Please enter the six digits."),
        (PASSWORD, phone.wrong(), "That code is wrong or was used already."),
        ("wrong", phone.code(), "That password is wrong."),
    ):
        admin.submit(path, **CHANGES[path], password=password, code=code)
        assert admin.page.status_code == 422
        assert problem in admin.text
    # It counts for this session, as at the page that turns it off.
    with app.app_context():
        (wrong,) = db.session.scalars(select(SecondFactorTry.known_by))
    assert (wrong or "").startswith("session:")
    assert [count(app, model) for model in (User, OutgoingEmail)] == [1, 1]
    admin.submit(path, **CHANGES[path], password=PASSWORD, recovery_code=phone.sheet[0])
    assert admin.page.status_code == 200
    assert admin.path == {"/account/delete": "/login", "/account/password": "/account"}.get(path, path)
    done = {"/account/delete": "account_deleted", "/account/password": "password_changed"}.get(path, "address_asked")
    assert acts(app, done) == [done]


@on_embedded
def test_what_changes_the_account_takes_the_password_alone_where_it_is_off(admin: Visitor) -> None:
    for path in CHANGES:
        admin.open(path)
        assert 'name="password"' in admin.page.text
        assert "authenticator" not in admin.text


@on_embedded
def test_a_page_that_asks_for_both_codes_tells_them_apart(admin: Visitor, phone: Phone) -> None:
    admin.open("/account/email")
    admin.submit("/account/email", email="other@example.com", password=PASSWORD, code=phone.code())
    labelled = dict(re.findall(r'<label for="(\w+)">\s*([^<]+?)\s*<', admin.page.text))
    assert labelled["code"] == "Code from the email"
    assert labelled["app_code"] == "Code from your authenticator app"
    ids = re.findall(r' id="([^"]+)"', admin.page.text)
    assert sorted(ids) == sorted(set(ids))


@on_embedded
@pytest.mark.parametrize("is_on", [True, False])
def test_ten_minutes_later_taking_ones_data_along_is_asked_for_as_under_ops(
    admin: Visitor, app: Flask, *, is_on: bool
) -> None:
    phone = turn_on(admin, app) if is_on else None
    assert "Password" not in admin.open("/account/export").text
    travel(app, sessions.REAUTH_SECONDS + 1)
    # Also where the page was open for longer.
    other: dict[str, Any] = {"password": PASSWORD} if phone else {"code": "123456"}
    wrong: dict[str, Any] = {"code": phone.wrong()} if phone else {"password": "wrong"}
    right: dict[str, Any] = {"code": phone.code()} if phone else {"password": PASSWORD}
    for given, status in (({}, 403), (other, 403), (wrong, 422)):
        admin.submit("/account/export", **given)
        assert admin.page.status_code == status
        # Without a field for it nothing was wrong.
        assert ("It's been a while" in admin.text) is (status == 403)
        assert ("Please fix" in admin.text) is (status == 422)
        assert ("Code from your authenticator app" in admin.text) is is_on
    assert acts(app, "exported") == []
    admin.submit("/account/export", **right)
    assert admin.page.json()["account"]["username"] == "admin"
    # And then for ten minutes not again.
    admin.open("/account/export")
    admin.submit("/account/export")
    assert acts(app, "exported") == ["exported"] * 2


@on_embedded
def test_what_operators_do_takes_a_code_where_it_is_on_and_the_password_is_no_proof(
    admin: Visitor, member: Visitor, phone: Phone, app: Flask
) -> None:
    travel(app, sessions.REAUTH_SECONDS + 1)
    # The password is right, but it no longer counts as proof by itself.
    admin.open("/account/email")
    admin.submit("/account/email", email="other@example.com", password=PASSWORD, code=phone.wrong())
    assert "That code is wrong" in admin.text
    act = f"/ops/users/{of(app).id}/lock"
    admin.open(act)
    admin.submit(act)
    assert "Enter your code" in admin.text
    assert admin.page.status_code == 403
    admin.submit(act, password=PASSWORD)
    assert "Enter your code" in admin.text
    admin.submit(act, code=phone.wrong())
    assert "That code is wrong or was used already" in admin.text
    admin.submit(act, code="")
    assert "Please enter the six digits." in admin.text
    assert of(app).locked_at is None
    admin.submit(act, code=phone.code())
    assert "The account is locked." in admin.text
    # For ten minutes, as after the password.
    admin.open(unlock := f"/ops/users/{of(app).id}/unlock")
    admin.submit(unlock)
    assert "The account is unlocked." in admin.text


@pytest.fixture
def strict(environ: dict[str, str], app: Flask) -> Iterator[Flask]:
    """The app with the setting that requires it."""
    made = create_app({**environ, "REQUIRE_SECOND_FACTOR": "true"})
    yield made
    with made.app_context():
        db.engine.dispose()


@on_embedded
def test_where_it_is_required_ops_is_closed_until_it_is_on(strict: Flask, member: Visitor) -> None:
    admin = operator(strict)
    for path in ("/ops", "/ops/users", "/ops/mails?status=dead"):
        admin.open(path)
        assert admin.path == PAGE
        assert "Everyone who works in Operations needs one." in admin.text
    admin.submit(PAGE, password=PASSWORD)
    pause = admin.http.post(
        "/ops/pause", data={**admin.hidden(f"{PAGE}/confirm"), "reason": "x"}, follow_redirects=False
    )
    assert (pause.status_code, pause.headers["Location"]) == (303, PAGE)
    assert flask_users(strict, "list").exit_code == 0
    admin.submit(f"{PAGE}/confirm", code=Phone(admin, strict).code())
    assert admin.open("/ops").url.path == "/ops"
    mick = Visitor("http://signup.example", strict)
    assert sign_in(mick)
    assert mick.open("/ops").status_code == 403


# Lost, exported, and forgotten.


@on_embedded
def test_an_operator_resets_it_for_who_lost_it(
    admin: Visitor, visitor: Visitor, phone: Phone, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATOR", "ann")
    assert flask_users(app, "reset-second-factor", "admin", input="n\n").exit_code == 1
    assert is_signed_in(admin)
    done = flask_users(app, "reset-second-factor", "admin", "--yes")
    assert done.stdout == "the second factor was turned off, and all sessions were ended\n"
    assert not is_signed_in(admin)
    assert sign_in(visitor, "admin")
    with app.app_context():
        (event,) = db.session.scalars(select(AuditEvent).where(AuditEvent.action == "second_factor_reset"))
    assert (event.actor, event.user_id) == ("ann", 1)
    again = flask_users(app, "reset-second-factor", "admin", "--yes")
    assert (again.exit_code, again.stderr) == (1, "nothing to reset: no second factor is on\n")


def test_it_is_told_in_lists_and_in_what_one_takes_along_and_goes_with_the_account(
    admin: Visitor, phone: Phone, app: Flask
) -> None:
    (row,) = json.loads(flask_users(app, "list", "--json").stdout)
    assert row["second_factor_at"]
    assert json.loads(flask_users(app, "show", "admin", "--json").stdout)["second_factor_at"]
    admin.open("/ops/users/1")
    assert "Second factor since (UTC)" in admin.text
    admin.open("/account/export")
    admin.submit("/account/export")
    told = admin.page.json()
    assert told["account"]["second_factor_at"]
    assert "second_factor_on" in [event["action"] for event in told["events"]]
    assert phone.secret not in admin.page.text
    admin.open("/account/delete")
    admin.submit("/account/delete", password=PASSWORD, code=phone.code())
    assert [count(app, model) for model in (User, SecondFactor, RecoveryCode, SecondFactorTry)] == [0, 0, 0, 0]


def test_a_secret_whose_first_code_never_came_is_forgotten_after_a_day(
    admin: Visitor, visitor: Visitor, app: Flask
) -> None:
    scan(admin, app)
    for seconds, left in ((factor.DAY - 60, 1), (120, 0)):
        travel(app, seconds)
        prune(app)
        assert count(app, SecondFactor) == left
    phone = turn_on(admin, app)
    travel(app, 2 * factor.DAY)
    prune(app)
    give_password(visitor)
    assert give_code(visitor, phone.code())


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_one_that_is_turned_on_while_others_are_forgotten_is_kept(admin: Visitor, visitor: Visitor, app: Flask) -> None:
    phone = scan(admin, app)
    travel(app, factor.DAY + 1)
    code = phone.code()
    with app.app_context():
        user = db.session.scalars(select(User)).one()
        users.lock_row(user)
        begun = factor.of(user, for_update=True)
        assert begun
        assert factor.use_code(begun, code)
        db.session.flush()
        prune(app)
        user.second_factor_at = db_now()
        db.session.commit()
    give_password(visitor)
    assert give_code(visitor, phone.code())


# Notices to the owner.


@pytest.fixture
def notice(send_due: Send, smtp: Server) -> Callable[[], Mail]:
    """Return the only email queued since the last call."""

    def arrived() -> Mail:
        send_due()
        (mail,) = smtp.mails
        smtp.mails.clear()
        assert mail.recipients == ["admin@example.com"]
        assert set(re.findall(r"http\S+", mail.text)) == {"http://signup.example/forgot"}
        return mail

    return arrived


def test_its_owner_is_told_of_each_change_when_and_from_where(
    admin: Visitor, app: Flask, notice: Callable[[], Mail]
) -> None:
    admin.http.headers["User-Agent"] = FIREFOX
    phone = turn_on(admin, app)
    told = {"on": notice()}
    admin.open(f"{PAGE}/codes")
    admin.submit(f"{PAGE}/codes", password=PASSWORD, code=phone.code())
    new = re.findall(r"<code>([a-z2-9-]{19})</code>", admin.page.text)
    told["codes"] = notice()
    admin.open(f"{PAGE}/off")
    admin.submit(f"{PAGE}/off", password=PASSWORD, code=phone.code())
    told["off"] = notice()
    assert {name: mail.message["Subject"] for name, mail in told.items()} == {
        "on": "Your Acme second factor was turned on",
        "codes": "New recovery codes for Acme",
        "off": "Your Acme second factor was turned off",
    }
    for mail in told.values():
        for part in (mail.text, unescape(mail.html)):
            assert re.search(r"On \d+ \w+ \d{4}, \d\d:\d\d UTC, from Firefox on Android, IP 127\.0\.0\.1\.", part)
            assert "If it wasn't you, set a new password right away" in part
            for secret in (phone.secret, *phone.sheet, *new):
                assert secret not in part


def test_its_owner_is_told_of_each_recovery_code_that_is_used(
    visitor: Visitor, phone: Phone, app: Flask, notice: Callable[[], Mail]
) -> None:
    notice()
    visitor.http.headers["User-Agent"] = FIREFOX
    for left in (9, 8):
        give_password(visitor)
        assert not give_code(visitor, recovery_code="aaaa-bbbb-cccc-dddd")
        assert give_code(visitor, recovery_code=phone.sheet[left])
        mail = notice()
        assert mail.message["Subject"] == "A recovery code for Acme was used"
        assert f"Recovery codes left: {left}." in mail.text
        assert "from Firefox on Android, IP 127.0.0.1." in mail.text
        assert phone.sheet[left] not in mail.text
        visitor.open("/account")
        visitor.submit("/logout")
    # An app's code sends none.
    give_password(visitor)
    assert give_code(visitor, phone.code())
    assert count(app, OutgoingEmail) == 3


@on_embedded
def test_a_recovery_code_that_let_nobody_in_is_neither_used_nor_told(
    visitor: Visitor, phone: Phone, app: Flask
) -> None:
    give_password(visitor)
    # The session's start finds out, and its commit would have covered all three.
    assert lock(app, "admin")
    assert not give_code(visitor, recovery_code=phone.sheet[0])
    assert count(app, OutgoingEmail) == 1
    with app.app_context():
        assert set(db.session.scalars(select(RecoveryCode.used_at))) == {None}


@on_embedded
def test_a_recovery_code_that_is_used_under_ops_is_told_with_where(
    admin: Visitor, phone: Phone, app: Flask, notice: Callable[[], Mail]
) -> None:
    notice()
    travel(app, sessions.REAUTH_SECONDS + 1)
    admin.http.headers["User-Agent"] = FIREFOX
    admin.open("/ops/pause")
    admin.submit("/ops/pause", reason="x")
    admin.submit("/ops/pause", reason="x", recovery_code=phone.sheet[0])
    assert acts(app, "paused") == ["paused"]
    assert flask_mail(app, "resume").exit_code == 0
    assert "from Firefox on Android, IP 127.0.0.1." in notice().text


def test_its_owner_is_told_when_an_operator_resets_it_and_not_from_where(
    admin: Visitor, phone: Phone, app: Flask, notice: Callable[[], Mail]
) -> None:
    notice()
    assert flask_users(app, "reset-second-factor", "admin", "--yes").exit_code == 0
    mail = notice()
    assert mail.message["Subject"] == "Your Acme second factor was reset"
    assert re.search(r"It was reset on \d+ \w+ \d{4}, \d\d:\d\d UTC\.", mail.text)
    assert "from" not in mail.text
    assert "If you didn't ask for this, someone may know your password." in mail.text
    # Nothing to reset, nothing to tell.
    assert flask_users(app, "reset-second-factor", "admin", "--yes").exit_code == 1
    assert count(app, OutgoingEmail) == 2


@pytest.mark.thai
@on_embedded
def test_it_is_told_in_its_owners_language(admin: Visitor, app: Flask, notice: Callable[[], Mail]) -> None:
    with app.app_context():
        db.session.execute(update(User).values(locale="th"))
        db.session.commit()
    turn_on(admin, app)
    mail = notice()
    assert mail.message["Subject"] == "เปิดการยืนยันขั้นที่สองของบัญชี Acme ของคุณแล้ว"
    assert '<html lang="th">' in mail.html


# For someone who only reads the database.


@on_embedded
def test_neither_the_secret_nor_a_recovery_code_is_in_the_database(admin: Visitor, app: Flask) -> None:
    masks = []
    for set_up in (scan, turn_on_later):
        phone = set_up(admin, app)
        rows, secret = str(everything(app)), pyotp.TOTP(phone.secret).byte_secret()
        with app.app_context():
            masked = db.session.scalars(select(SecondFactor.masked)).one()
        assert len(masked) == len(secret)
        for plain in (phone.secret, secret.hex(), *phone.sheet, *(code.replace("-", "") for code in phone.sheet)):
            assert plain not in rows
        assert masked != secret
        masks.append(bytes(one ^ other for one, other in zip(secret, masked, strict=True)))
    # Otherwise an account's old and new secrets would differ in a way that reveals both.
    assert masks[0] != masks[1]


def turn_on_later(visitor: Visitor, app: Flask) -> Phone:
    travel(app, sessions.REAUTH_SECONDS + 1)
    return turn_on(visitor, app)


def test_a_changed_key_leaves_it_working_and_a_worker_moves_it_to_the_new_one(
    visitor: Visitor, phone: Phone, app: Flask, environ: dict[str, str]
) -> None:
    other = "another-one-for-tests-9876543210"
    rotating = create_app({**environ, "SECRET_KEY": other, "SECRET_KEY_FALLBACKS": environ["SECRET_KEY"]})
    give_password(one := Visitor("http://signup.example", rotating))
    assert give_code(one, phone.code())
    with rotating.app_context():
        relay.mask_anew()
        db.session.remove()
        db.engine.dispose()
    changed = create_app({**environ, "SECRET_KEY": other})
    give_password(two := Visitor("http://signup.example", changed))
    assert give_code(two, phone.code())
    # Without the old key you need the recovery codes, which depend on no key.
    lost = create_app({**environ, "SECRET_KEY": "a-third-for-tests-5678901234"})
    give_password(three := Visitor("http://signup.example", lost))
    assert not give_code(three, phone.code())
    assert give_code(three, recovery_code=phone.sheet[0])
    for made in (changed, lost):
        with made.app_context():
            db.engine.dispose()
