"""An account locked by an operator: nobody gets in, nobody is told, and unlocking restores it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select, update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import code_in
from tests.accounts.test_email_change import CONFIRM, PUT_BACK, addresses, asked, change, is_signed_in, sign_in
from webapp.accounts import sessions, users
from webapp.accounts.support import actions
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now

Send = Callable[[], None]

ANOTHER = "lantern under the pear tree"


def of(app: Flask, username: str = "mick19") -> User:
    with app.app_context():
        return db.session.scalars(select(User).where(User.username == username)).one()


def lock(app: Flask, username: str = "mick19") -> bool:
    with app.app_context():
        return actions.lock(db.session.merge(of(app, username)))


def unlock(app: Flask, username: str = "mick19") -> bool:
    with app.app_context():
        return actions.unlock(db.session.merge(of(app, username)))


def without_times(visitor: Visitor) -> str:
    return re.sub(r"\d+ (second|minute)s?", "<time>", visitor.text)


def forget(visitor: Visitor, send_due: Send, smtp: Server) -> str:
    """Return the link for a forgotten password."""
    visitor.open("/forgot")
    visitor.submit("/forgot", email="mick@example.com")
    send_due()
    return smtp.to("mick@example.com")[-1].link


def test_it_is_signed_out_everywhere_and_cannot_sign_in_until_it_is_unlocked(
    member: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    assert member.open("/auth").status_code == 204
    assert lock(app)
    assert not lock(app)
    assert member.open("/auth").status_code == 401
    assert not is_signed_in(member)
    for identifier in ("mick19", "mick@example.com"):
        for visitor in (member, another_visitor):
            assert not sign_in(visitor, identifier)
            assert "That username, email address, or password is wrong." in visitor.text
    assert unlock(app)
    assert not unlock(app)
    assert not is_signed_in(member)
    assert sign_in(another_visitor)


def test_nobody_whose_password_was_checked_just_before_gets_in(member: Visitor, app: Flask) -> None:
    checked = of(app)
    lock(app)
    with app.app_context(), pytest.raises(sessions.PasswordChanged):
        sessions.begin(checked)


def test_nobody_who_was_found_just_before_gets_a_link(member: Visitor, app: Flask) -> None:
    found = of(app)
    lock(app)
    with app.app_context():
        assert not users.stays(found)


def test_a_link_that_was_begun_just_before_does_nothing(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    member.open(asked(member, send_due, smtp).link)
    another_visitor.open(forget(another_visitor, send_due, smtp))
    former = of(app).password_hash
    # As if both links had been committed just after the earlier ones were voided.
    with app.app_context():
        db.session.execute(update(User).values(locked_at=db_now()))
        db.session.commit()
    another_visitor.submit("/reset", password=ANOTHER)
    assert another_visitor.page.status_code == 404
    member.submit(CONFIRM)
    assert member.page.status_code == 404
    assert of(app).password_hash == former
    assert addresses(app) == ["mick@example.com"]


def test_its_links_and_codes_are_void_and_stay_so(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    mail = asked(member, send_due, smtp)
    reset = forget(another_visitor, send_due, smtp)
    another_visitor.open(reset)
    member.open("/account/email")
    lock(app)
    for link in (mail.link, reset):
        assert Visitor("http://signup.example", app).open(link).status_code == 404
    # Even for someone who has its page open.
    token = Visitor.hidden(another_visitor, "/reset")
    assert another_visitor.http.post("/reset", data={**token, "password": ANOTHER}).status_code == 404
    member.submit("/account/email/code", code=code_in(mail))
    assert member.path == "/login"
    assert addresses(app) == ["mick@example.com"]
    unlock(app)
    for link in (mail.link, reset):
        assert Visitor("http://signup.example", app).open(link).status_code == 404
    assert sign_in(another_visitor)


def test_nobody_gets_a_link_for_a_new_password_while_it_is_locked(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.open("/forgot")
    another_visitor.submit("/forgot", email="mick@example.com")
    lock(app)
    send_due()
    another_visitor.open("/forgot")
    another_visitor.submit("/forgot", email="mick@example.com")
    assert another_visitor.path == "/forgot/sent"
    send_due()
    assert smtp.mails == []
    unlock(app)
    assert forget(another_visitor, send_due, smtp).startswith("http://signup.example/reset/")


def test_a_locked_signup_is_verified_by_nothing_and_its_page_tells_nothing(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    (mail,) = smtp.mails
    visitor.open("/signup/sent")
    told = without_times(visitor)
    lock(app)
    assert another_visitor.open(mail.link).status_code == 404
    visitor.open("/signup/sent")
    assert without_times(visitor) == told
    visitor.submit("/signup/code", code=code_in(mail))
    assert "That code is wrong or has expired" in visitor.text
    assert not sign_in(another_visitor)
    assert "That username, email address, or password is wrong." in another_visitor.text
    visitor.open("/signup/sent")
    visitor.submit("/signup/resend")
    send_due()
    # It looks sent, but is not.
    assert visitor.path == "/signup/sent"
    assert len(smtp.mails) == 1
    unlock(app)
    visitor.open("/signup/sent")
    visitor.submit("/signup/resend")
    send_due()
    visitor.open(smtp.mails[-1].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"


def test_a_locked_signup_is_not_verified_by_a_link_to_its_address_of_somebody_else(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up(username="ann")
    another_visitor.sign_up(username="bob")
    send_due()
    lock(app, "ann")
    visitor.open(smtp.mails[-1].link)
    # The browser that holds the locked one.
    assert visitor.submit("/verify").status_code == 404
    with app.app_context():
        assert db.session.scalars(select(User).where(User.email_verified_at.is_not(None))).all() == []


def test_a_link_that_was_disowned_is_no_way_in_either(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify", action="disown")
    lock(app)
    visitor.submit("/verify/undo")
    assert visitor.submit("/verify").status_code == 404


def test_whoever_had_the_address_before_can_still_put_it_back_and_is_not_let_in(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    """An operator who locks a stolen account must not cut off its owner's way back."""
    undo = change(member, send_due, smtp)
    lock(app)
    another_visitor.open(undo.link)
    another_visitor.submit(PUT_BACK)
    assert "This account is locked. Please contact us." in another_visitor.text
    # A link sent from there would never arrive.
    assert "/forgot" not in another_visitor.page.text
    assert addresses(app) == ["mick@example.com"]
    assert not is_signed_in(another_visitor)
    assert not sign_in(another_visitor)


def test_its_address_gets_what_it_ever_got_when_somebody_signs_up_with_it(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    lock(app)
    another_visitor.sign_up(username="ann")
    send_due()
    (mail,) = smtp.mails
    assert "You already have an account" in mail.text


def test_the_link_of_a_changed_address_does_nothing_in_a_page_that_is_open(
    member: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.open(asked(member, send_due, smtp).link)
    lock(app)
    another_visitor.submit(CONFIRM, password=PASSWORD)
    assert another_visitor.page.status_code == 404
    assert addresses(app) == ["mick@example.com"]
