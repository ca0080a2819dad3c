"""Strangers' wrong tries never lock an owner out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from limits import parse_many

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_password_change import forget, reset_link
from tests.conftest import send_due_mails
from tests.factories import only_user
from webapp import create_app
from webapp.db.base import db

Send = Callable[[], None]

WRONG = "staple battery horse"
NEW = "a new long password"

# Where the owner is, and the network that strangers share with them.
HERE = "127.0.0.1"


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {**environ, "RATELIMIT_ENABLED": "true", "RATELIMIT_LOGIN_ACCOUNT": "3/hour", "RATELIMIT_LOGIN_IP": "6/hour"}


def sign_in(visitor: Visitor, password: str, identifier: str = "mick19") -> int:
    visitor.open("/login")
    return visitor.submit("/login", follow=False, identifier=identifier, password=password).status_code


def sign_out(visitor: Visitor) -> Visitor:
    visitor.open("/account")
    visitor.submit("/logout")
    return visitor


def besiege(app: Flask) -> Visitor:
    """Fail to sign in by name and by address, from the owner's own network, until nobody may try any more."""
    stranger = Visitor("http://signup.example", app, ip=HERE)
    for identifier in ("mick19", "mick@example.com"):
        assert [sign_in(stranger, WRONG, identifier) for _ in range(3)] == [422] * 3
    for ip in (HERE, "192.0.2.1"):
        for identifier in ("mick19", "mick@example.com"):
            assert sign_in(Visitor("http://signup.example", app, ip=ip), PASSWORD, identifier) == 429
    return stranger


def cookie(visitor: Visitor) -> str:
    return visitor.http.cookies["known"]


def with_cookie(app: Flask, value: str) -> Visitor:
    visitor = Visitor("http://signup.example", app)
    visitor.http.cookies.set("known", value, domain="signup.example")
    return visitor


def test_who_is_signed_in_changes_password_and_address_and_deletes_the_account(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    besiege(app)
    member.open("/account/email")
    member.submit("/account/email", email="new@example.com", password=PASSWORD)
    assert member.page.status_code == 200
    send_due()
    link = smtp.mails[-1].link
    # Elsewhere it accepts the password too.
    phone = Visitor("http://signup.example", app)
    phone.open(link)
    phone.submit("/account/email/confirm", password=PASSWORD)
    assert phone.page.status_code == 200
    assert only_user(app).email == "new@example.com"
    member.open("/account/password")
    member.submit("/account/password", password=PASSWORD, new_password=NEW)
    assert member.path == "/account"
    member.open("/account/delete")
    member.submit("/account/delete", password=NEW)
    assert member.path == "/login"


@pytest.mark.parametrize("identifier", ["mick@example.com", "Mick <MICK@example.com>"])
def test_a_signup_with_the_owners_address_lets_nobody_guess_on(member: Visitor, app: Flask, identifier: str) -> None:
    stranger = Visitor("http://signup.example", app, ip="192.0.2.1")
    stranger.sign_up(username="stranger", password=NEW)
    assert [sign_in(stranger, WRONG, identifier) for _ in range(2)] == [422] * 2
    # The stranger's own password is right for the stranger's own signup.
    assert sign_in(stranger, NEW, identifier) == 303
    assert stranger.open("/account").url.path == "/login"
    assert sign_in(stranger, WRONG, identifier) == 429
    assert sign_in(Visitor("http://signup.example", app, ip="192.0.2.2"), WRONG, identifier) == 429


def test_a_link_for_a_new_password_signs_in_and_ends_the_siege(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    besiege(app)
    sign_in(another_visitor, PASSWORD)
    assert 'href="/forgot"' in another_visitor.page.text
    forget(another_visitor)
    send_due()
    another_visitor.open(reset_link(smtp))
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.path == "/account"
    elsewhere = Visitor("http://signup.example", app, ip="192.0.2.2")
    assert sign_in(elsewhere, NEW) == 303
    assert sign_in(Visitor("http://signup.example", app, ip="192.0.2.3"), NEW, "mick@example.com") == 303


def test_a_signup_is_confirmed_by_its_link_and_password(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    besiege(app)
    phone = Visitor("http://signup.example", app, ip=HERE)
    phone.open(smtp.mails[-1].link)
    phone.submit("/verify", password=PASSWORD)
    assert phone.path == "/account"


def test_a_browser_that_signed_in_before_signs_in(member: Visitor, app: Flask) -> None:
    sign_out(member)
    besiege(app)
    for identifier in ("mick19", "MICK@example.com"):
        assert sign_in(member, PASSWORD, identifier) == 303
        sign_out(member)


def test_a_known_browser_guesses_on_a_count_of_its_own_that_ends(member: Visitor, app: Flask) -> None:
    app.config["RATELIMIT_LOGIN_KNOWN"] = parse_many("2/hour")
    sign_out(member)
    stolen = with_cookie(app, cookie(member))
    assert [sign_in(stolen, WRONG) for _ in range(2)] == [422, 422]
    assert sign_in(stolen, PASSWORD) == 429
    assert 'href="/forgot"' in stolen.page.text
    # Its failures count against nobody else.
    assert [sign_in(Visitor("http://signup.example", app, ip="192.0.2.9"), WRONG) for _ in range(3)] == [422] * 3


def test_a_known_browser_is_known_to_its_own_accounts_and_no_other(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.sign_up(username="other", email="other@example.com")
    send_due()
    another_visitor.open(smtp.mails[-1].link)
    another_visitor.submit("/verify")
    # Two people share a browser: it is known to both.
    assert sign_in(sign_out(member), PASSWORD, "other") == 303
    besiege(app)
    assert sign_in(sign_out(another_visitor), PASSWORD) == 429
    for identifier in ("other", "mick19"):
        assert sign_in(sign_out(member), PASSWORD, identifier) == 303
    assert cookie(member).count(".") == 3


@pytest.mark.parametrize(
    "forge", [str.upper, lambda made: made[:-1] + ("0" if made[-1] != "0" else "1"), lambda _made: "."]
)
def test_nobody_forges_a_known_browser(member: Visitor, app: Flask, forge: Callable[[str], str]) -> None:
    besiege(app)
    assert sign_in(with_cookie(app, forge(cookie(member))), PASSWORD) == 429


def test_a_changed_password_makes_every_browser_unknown(member: Visitor, app: Flask) -> None:
    former = cookie(member)
    member.open("/account/password")
    member.submit("/account/password", password=PASSWORD, new_password=NEW)
    besiege(app)
    assert sign_in(with_cookie(app, former), NEW) == 429
    assert sign_in(sign_out(member), NEW) == 303


def test_the_cookie_says_nothing_and_no_page_depends_on_it(member: Visitor, app: Flask) -> None:
    name, seal = cookie(member).split(".")
    assert (len(name), len(seal)) == (32, 64)
    pages = []
    for visitor in (Visitor("http://signup.example", app), with_cookie(app, cookie(member))):
        page = visitor.open("/login").text
        pages.append(page.replace(visitor.hidden("/login")["csrf_token"], ""))
    assert pages[0] == pages[1]
    sign_out(member)
    sign_in(member, PASSWORD)
    (kept,) = [text for text in member.page.headers.get_list("set-cookie") if text.startswith("known=")]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(kept.split("; "))


def test_over_https_the_cookie_is_the_hosts_own(environ: dict[str, str], cheap_passwords: None, smtp: Server) -> None:
    app = create_app({**environ, "PUBLIC_URL": "https://signup.example"})
    visitor = Visitor("https://signup.example", app)
    visitor.sign_up()
    send_due_mails(app)
    visitor.open(smtp.mails[-1].link)
    visitor.submit("/verify", follow=False)
    (kept,) = [text for text in visitor.page.headers.get_list("set-cookie") if text.startswith("__Host-known=")]
    assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(kept.split("; "))
    with app.app_context():
        db.engine.dispose()
