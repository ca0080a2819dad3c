"""Changing the address: proved by link or code, announced to the old address, and undone from there."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import func, select

from harness.smtp_server import Mail, Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import a_wrong_code, code_in
from tests.factories import travel
from tests.pages.test_verify import everything
from webapp.accounts import email_change, links
from webapp.accounts.links import AlreadyVerified, LinkInvalid, VerifyEmail
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.paths import ROOT

Send = Callable[[], None]

# These look the same on every database.
on_embedded = pytest.mark.parametrize("backend", ["embedded"], indirect=True)

OLD = "mick@example.com"
NEW = "new@example.com"
CONFIRM = "/account/email/confirm"
PUT_BACK = "/account/email/revoke"


def ask(visitor: Visitor, address: str = NEW, password: str = PASSWORD) -> None:
    visitor.open("/account/email")
    visitor.submit("/account/email", email=address, password=password)


def asked(visitor: Visitor, send_due: Send, smtp: Server, address: str = NEW) -> Mail:
    """Ask to change to the address; return the email that it got."""
    ask(visitor, address)
    send_due()
    return smtp.to(address)[-1]


def change(visitor: Visitor, send_due: Send, smtp: Server, address: str = NEW) -> Mail:
    """Change to the address; return the email that the old one got."""
    visitor.open(asked(visitor, send_due, smtp, address).link)
    visitor.submit(CONFIRM)
    assert visitor.path == "/account"
    send_due()
    return smtp.mails[-1]


def addresses(app: Flask) -> list[str]:
    """The verified addresses."""
    with app.app_context():
        return list(db.session.scalars(select(User.email).where(User.email_verified_at.is_not(None)).order_by(User.id)))


def events(app: Flask, action: str) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).where(AuditEvent.action == action)) or 0


def is_signed_in(visitor: Visitor) -> bool:
    visitor.open("/account")
    return visitor.path == "/account"


def sign_in(visitor: Visitor, identifier: str = "mick19", password: str = PASSWORD) -> bool:
    visitor.open("/login")
    visitor.submit("/login", identifier=identifier, password=password)
    return visitor.path == "/account"


def another_member(app: Flask, send_due: Send, smtp: Server, name: str, address: str) -> Visitor:
    visitor = Visitor("http://signup.example", app)
    visitor.sign_up(username=name, email=address)
    send_due()
    visitor.open(smtp.to(address)[-1].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"
    return visitor


# Asking.


@on_embedded
def test_the_page_is_for_those_who_are_signed_in(visitor: Visitor) -> None:
    visitor.open("/account/email")
    assert visitor.path == "/login"


def test_the_new_address_gets_a_link_and_a_code_and_the_old_one_stays_until_then(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    mail = asked(member, send_due, smtp)
    assert mail.message["Subject"] == f"{code_in(mail)} is your Acme code"
    assert mail.link.startswith(f"http://signup.example{CONFIRM}/")
    assert "mick19" not in mail.text
    assert OLD not in mail.text
    assert code_in(mail)
    member.open("/account/email")
    assert NEW in member.text
    assert f"your address stays {OLD}" in member.text
    assert "Sent " in member.text
    assert addresses(app) == [OLD]
    assert len(smtp.mails) == 1


def test_what_moves_of_the_page_is_asked_for_by_itself(member: Visitor, send_due: Send, smtp: Server) -> None:
    ask(member)
    assert "Sending…" in member.open("/account/email/progress").text
    send_due()
    told = member.open("/account/email/progress").text
    assert told.count("aria-current") == 1
    assert f'<strong class="address">{NEW}</strong>' in told
    assert "Sent " in told
    member.open(smtp.mails[-1].link)
    member.submit(CONFIRM)
    # The page itself says what happened.
    assert member.open("/account/email/progress").headers["HX-Redirect"] == "/account/email"
    member.open("/account")
    member.submit("/logout")
    assert member.open("/account/email/progress").headers["HX-Redirect"] == "/account/email"


@on_embedded
def test_what_is_wrong_is_told_and_no_mail_is_promised(member: Visitor, app: Flask) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"email": "nobody"}, "Please check this address"),
        ({"email": "Mick@EXAMPLE.com"}, "This is already your address."),
        ({"email": ""}, "Please enter your email address."),
        ({"password": ""}, "Please enter your password."),
        ({"password": "not the password"}, "That password is wrong."),
        ({"csrf_token": "bad"}, "This page expired"),
    ]
    for fields, told in wrong:
        member.open("/account/email")
        member.submit("/account/email", **{"email": NEW, "password": PASSWORD, **fields})
        assert member.page.status_code in {400, 422}
        assert told in member.text
        assert PASSWORD not in member.page.text
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(VerifyEmail)) == 1


# Confirming.


def test_the_link_confirms_where_one_is_signed_in(member: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    member.open(asked(member, send_due, smtp).link)
    assert member.path == CONFIRM
    assert "n••@example.com" in member.text
    member.submit(CONFIRM)
    assert member.path == "/account"
    assert "Your address was changed." in member.text
    assert f"{NEW} Verified" in member.text
    assert addresses(app) == [NEW]
    assert (events(app, "address_asked"), events(app, "address_changed")) == (1, 1)
    fresh = Visitor("http://signup.example", app)
    assert sign_in(fresh, NEW)
    assert not sign_in(Visitor("http://signup.example", app), OLD)


def test_elsewhere_the_link_takes_the_password_and_gives_no_session(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.open(asked(member, send_due, smtp).link)
    assert "mick19" not in another_visitor.text
    for wrong in ("", "not the password"):
        another_visitor.submit(CONFIRM, password=wrong)
        assert another_visitor.page.status_code == 422
    assert addresses(app) == [OLD]
    another_visitor.submit(CONFIRM, password=PASSWORD)
    assert addresses(app) == [NEW]
    assert not is_signed_in(another_visitor)
    assert is_signed_in(member)


@on_embedded
def test_somebody_else_who_is_signed_in_gives_the_accounts_password_too(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    rival = another_member(app, send_due, smtp, "rival", "rival@example.com")
    rival.open(asked(member, send_due, smtp).link)
    rival.submit(CONFIRM)
    assert rival.page.status_code == 422
    assert addresses(app) == [OLD, "rival@example.com"]


def test_the_code_confirms_in_the_session_that_asked_and_in_no_other(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    code = code_in(asked(member, send_due, smtp))
    assert sign_in(another_visitor)
    another_visitor.open("/account/email")
    assert "in the browser where you asked" in another_visitor.text
    token = another_visitor.hidden("/account/email/resend")
    another_visitor.page = another_visitor.http.post("/account/email/code", data={**token, "code": code})
    assert another_visitor.page.status_code == 422
    assert addresses(app) == [OLD]
    member.open("/account/email")
    member.submit("/account/email/code", code=code)
    assert member.path == "/account"
    assert addresses(app) == [NEW]


def test_after_five_wrong_codes_in_a_day_only_the_link_counts(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    mail = asked(member, send_due, smtp)
    for _ in range(5):
        member.open("/account/email")
        member.submit("/account/email/code", code=a_wrong_code(mail))
        assert "That code is wrong or has expired" in member.text
    member.submit("/account/email/code", code=code_in(mail))
    assert "Too many wrong codes" in member.text
    # Another address grants no new tries.
    mail = asked(member, send_due, smtp, "other@example.com")
    member.open("/account/email")
    member.submit("/account/email/code", code=code_in(mail))
    assert "Too many wrong codes" in member.text
    travel(app, 86401)
    member.open("/account/email")
    member.submit("/account/email/resend")
    send_due()
    member.open("/account/email")
    member.submit("/account/email/code", code=code_in(smtp.mails[-1]))
    assert addresses(app) == ["other@example.com"]


def test_twenty_looks_at_either_link_change_nothing_and_the_click_still_works(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    for path, link in ((CONFIRM, asked(member, send_due, smtp).link), (PUT_BACK, "")):
        opened = link or change(member, send_due, smtp).link
        before = everything(app)
        for _ in range(10):
            another_visitor.open(opened)
            another_visitor.http.head(opened)
        assert another_visitor.path == path
        assert everything(app) == before
    another_visitor.submit(PUT_BACK)
    assert addresses(app) == [OLD]


@on_embedded
def test_the_token_leaves_the_address_bar_and_no_log_has_it(
    member: Visitor, send_due: Send, smtp: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, link in ((CONFIRM, asked(member, send_due, smtp).link), (PUT_BACK, change(member, send_due, smtp).link)):
        member.open(link, follow=False)
        assert member.page.status_code == 303
        assert member.page.headers["location"] == path
        cookie = member.page.headers["set-cookie"]
        assert {"HttpOnly", f"Path={path}", "SameSite=Lax"} <= set(cookie.split("; "))
        assert link.rpartition("/")[2] not in capsys.readouterr().err


@on_embedded
def test_a_link_for_one_purpose_is_none_for_another(member: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    with app.app_context():
        signup = links.token(db.session.scalars(select(VerifyEmail)).one())
    asked_for = asked(member, send_due, smtp).link.rpartition("/")[2]
    undo = change(member, send_due, smtp, "third@example.com").link.rpartition("/")[2]
    for path, own in (("/verify", signup), (CONFIRM, asked_for), (PUT_BACK, undo)):
        for token in {signup, asked_for, undo, "garbage"} - {own}:
            assert member.open(f"{path}/{token}").status_code == 404
    assert addresses(app) == ["third@example.com"]


@on_embedded
def test_asking_again_calling_off_and_disowning_void_the_link(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    first = asked(member, send_due, smtp)
    second = asked(member, send_due, smtp, "second@example.com")
    assert member.open(first.link).status_code == 404
    assert code_in(first) != code_in(second)
    member.open("/account/email")
    member.submit("/account/email/cancel")
    assert member.path == "/account"
    assert member.open(second.link).status_code == 404
    member.open("/account/email")
    assert "Check your email" not in member.text
    third = asked(member, send_due, smtp, "third@example.com")
    another_visitor.open(third.link)
    another_visitor.submit(CONFIRM, action="disown")
    assert "that link no longer works" in another_visitor.text
    assert member.open(third.link).status_code == 404
    assert addresses(app) == [OLD]


def test_a_changed_address_ends_all_that_was_asked_for_before(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    link = asked(member, send_due, smtp).link
    member.open(link)
    member.submit(CONFIRM)
    member.open(link)
    assert member.page.status_code == 200
    assert "has already been used" in member.text
    member.open("/account/email")
    assert "Check your email" not in member.text
    assert events(app, "address_changed") == 1
    # Nor does a code typed after that.
    token = member.hidden("/account/email")
    member.page = member.http.post("/account/email/code", data={**token, "code": "123456"}, follow_redirects=True)
    assert member.page.status_code == 200
    assert f"Your address is {NEW}" in member.text


@on_embedded
def test_an_expired_link_says_where_to_get_a_new_one(member: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    link = asked(member, send_due, smtp).link
    travel(app, 86401)
    assert member.open(link).status_code == 410
    member.open("/account/email")
    member.submit("/account/email/resend")
    send_due()
    assert smtp.mails[-1].link == link
    member.open(link)
    member.submit(CONFIRM)
    assert addresses(app) == [NEW]


@on_embedded
def test_the_button_confirms_only_what_its_page_showed(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    member.open(asked(member, send_due, smtp).link)
    member.submit(CONFIRM, verification="another")
    assert member.page.status_code == 200
    assert "Is this address yours?" in member.text
    assert addresses(app) == [OLD]


# When several compete for an address, one wins.


def test_twenty_confirmations_at_once_are_one(member: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    token = asked(member, send_due, smtp).link.rpartition("/")[2]

    def confirm(_n: int) -> str:
        with app.app_context():
            try:
                email_change.confirm(links.find(token, "change").id)
            except (AlreadyVerified, LinkInvalid) as error:
                return type(error).__name__
            return "changed"

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(confirm, range(20)))
    assert sorted(outcomes) == ["AlreadyVerified"] * 19 + ["changed"]
    assert events(app, "address_changed") == 1
    send_due()
    assert len(smtp.to(OLD)) == 1


def test_of_those_who_prove_one_address_at_once_one_has_it(app: Flask, send_due: Send, smtp: Server) -> None:
    """Two accounts that change to it, and a signup with it."""
    rivals = [another_member(app, send_due, smtp, f"rival{n}", f"rival{n}@example.com") for n in range(2)]
    links = [asked(rival, send_due, smtp).link for rival in rivals]
    newcomer = Visitor("http://signup.example", app)
    newcomer.sign_up(username="newcomer", email=NEW)
    send_due()
    for visitor, link in zip([*rivals, newcomer], [*links, smtp.to(NEW)[-1].link], strict=True):
        visitor.open(link)
    acts = [lambda one=one: one.submit(CONFIRM) for one in rivals] + [lambda: newcomer.submit("/verify")]
    with ThreadPoolExecutor(3) as pool:
        statuses = sorted(page.status_code for page in pool.map(lambda act: act(), acts))
    assert statuses[0] == 200
    assert set(statuses[1:]) <= {404, 409}
    assert addresses(app).count(NEW) == 1


def test_who_proves_an_address_second_is_told_so_and_keeps_the_own(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    rival = another_member(app, send_due, smtp, "rival", "rival@example.com")
    for visitor in (member, rival):
        visitor.open(asked(visitor, send_due, smtp).link)
    rival.submit(CONFIRM)
    assert rival.path == "/account"
    member.submit(CONFIRM)
    assert "This address already has an account" in member.text
    assert member.page.status_code == 409
    assert addresses(app) == [OLD, NEW]


# The former address.


def test_the_former_address_is_told_and_puts_itself_back(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    mail = change(member, send_due, smtp)
    assert mail.recipients == [OLD]
    assert mail.message["Subject"] == "Your Acme address was changed"
    assert mail.link.startswith(f"http://signup.example{PUT_BACK}/")
    assert NEW not in mail.text
    another_visitor.open(mail.link)
    assert "m•••@example.com" in another_visitor.text
    another_visitor.submit(PUT_BACK)
    assert "Your address was restored" in another_visitor.text
    assert re.search(r'href="/forgot">Set a new password<', another_visitor.page.text)
    assert addresses(app) == [OLD]
    assert events(app, "address_put_back") == 1
    # Whoever changed it is signed out, and stays out.
    assert not is_signed_in(member)
    assert not sign_in(member)
    assert not is_signed_in(another_visitor)
    another_visitor.open(mail.link)
    assert "Your address was already restored" in another_visitor.text


def test_it_can_be_put_back_for_a_day_from_the_mail_on(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    member.open(asked(member, send_due, smtp).link)
    member.submit(CONFIRM)
    # Email was down for a week.
    travel(app, 7 * 86400)
    send_due()
    link = smtp.to(OLD)[-1].link
    travel(app, 86000)
    assert another_visitor.open(link).status_code == 200
    travel(app, 500)
    assert another_visitor.open(link).status_code == 410
    assert addresses(app) == [NEW]


def test_the_first_of_two_former_addresses_has_the_older_right(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    first = change(member, send_due, smtp)
    second = change(member, send_due, smtp, "third@example.com")
    pending = asked(member, send_due, smtp, "fourth@example.com")
    assert (first.recipients, second.recipients) == ([OLD], [NEW])
    another_visitor.open(second.link)
    another_visitor.submit(PUT_BACK)
    assert addresses(app) == [NEW]
    assert another_visitor.open(pending.link).status_code == 404
    another_visitor.open(first.link)
    another_visitor.submit(PUT_BACK)
    assert addresses(app) == [OLD]


def test_putting_back_ends_the_way_back_to_a_later_address(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    first = change(member, send_due, smtp)
    second = change(member, send_due, smtp, "third@example.com")
    another_visitor.open(first.link)
    another_visitor.submit(PUT_BACK)
    assert another_visitor.open(second.link).status_code == 404
    assert addresses(app) == [OLD]


def test_an_address_that_has_an_account_of_its_own_by_now_is_not_put_back(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    link = change(member, send_due, smtp).link
    another_member(app, send_due, smtp, "newcomer", OLD)
    another_visitor.open(link)
    assert another_visitor.page.status_code == 409
    assert "Another account has confirmed it in the meantime" in another_visitor.text
    assert addresses(app) == [NEW, OLD]


# What it reveals, and to whom.


def test_the_owner_of_a_taken_address_is_told_and_gets_no_link(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_member(app, send_due, smtp, "owner", "Owner@example.com")
    smtp.mails.clear()
    ask(member, "owner@example.com")
    send_due()
    (mail,) = smtp.mails
    assert mail.recipients == ["Owner@example.com"]
    assert mail.message["Subject"] == "You already have an account with Acme"
    assert CONFIRM not in mail.text
    member.open("/account/email")
    assert "Sent " in member.text
    # The data export does not reveal it either.
    exported = member_export(member)
    assert "account_exists" not in exported
    assert "Owner@" not in exported


def member_export(member: Visitor) -> str:
    member.open("/account/export")
    return member.submit("/account/export").text


def test_a_mail_that_waits_is_canceled_when_its_link_dies(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    ask(member)
    member.open("/account/email")
    member.submit("/account/email/cancel")
    send_due()
    assert not smtp.mails
    with app.app_context():
        assert db.session.scalars(select(OutgoingEmail.status).order_by(OutgoingEmail.created_at)).all() == [
            "sent",
            "canceled",
        ]


def test_on_the_way_down_old_code_finds_no_link_that_it_would_take_for_a_signups(
    member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    change(member, send_due, smtp)
    ask(member, "third@example.com")
    with app.app_context():
        db.session.remove()
        flask_migrate.downgrade(str(ROOT / "migrations"), "0014")
        purposes = db.session.execute(db.text("SELECT purpose FROM verify_emails")).all()
        waiting = db.session.execute(db.text("SELECT id FROM outgoing_emails WHERE status = 'queued'")).all()
        db.session.remove()
        flask_migrate.upgrade(str(ROOT / "migrations"))
    assert (purposes, waiting) == ([("signup",)], [])
    assert addresses(app) == [NEW]
