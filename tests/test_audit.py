"""What the audit records."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import select

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.factories import only_user
from webapp.accounts import verification
from webapp.accounts.links import AlreadyVerified, VerifyEmail
from webapp.audit import AuditEvent
from webapp.db.base import db

Send = Callable[[], None]


def events(app: Flask) -> list[tuple[str, bool, str | None]]:
    """Each action, whether it names the only user, and the IP address that it came from."""
    user_id = only_user(app).id
    with app.app_context():
        found = db.session.scalars(select(AuditEvent).order_by(AuditEvent.id)).all()
    return [(event.action, event.user_id == user_id, event.address) for event in found]


def test_the_way_of_an_account_is_remembered(visitor: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    visitor.sign_up()
    visitor.submit("/signup/email", email="right@example.com")
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify", action="disown")
    visitor.submit("/verify/undo")
    visitor.submit("/verify")
    visitor.submit("/logout")
    visitor.open("/login")
    visitor.submit("/login", identifier="mick19", password="wrong")
    visitor.submit("/login", identifier="mick19", password=PASSWORD)
    here = "127.0.0.1"
    assert events(app) == [
        ("signed_up", True, here),
        ("address_changed", True, here),
        ("disowned", True, here),
        ("owned_again", True, here),
        ("verified", True, here),
        ("signed_in", True, here),
        ("signed_out", True, here),
        ("sign_in_failed", False, here),
        ("signed_in", True, here),
    ]


def test_who_confirms_second_changes_nothing(visitor: Visitor, app: Flask, send_due: Send) -> None:
    """Even if both looked at the link before either confirmed."""
    visitor.sign_up()
    send_due()
    with app.app_context():
        proof = db.session.scalars(select(VerifyEmail)).one()
        verification.confirm(proof.id)
        with pytest.raises(AlreadyVerified):
            verification.confirm(proof.id)
        db.session.rollback()
    assert [action for action, _, _ in events(app)].count("verified") == 1


def test_twenty_confirmations_of_one_signup_at_once_are_one_event(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    send_due()
    link = smtp.mails[0].link
    browsers = [Visitor("http://signup.example", app) for _ in range(20)]
    for browser in browsers:
        browser.open(link)
    with ThreadPoolExecutor(20) as pool:
        pages = list(pool.map(lambda browser: browser.submit("/verify", password=PASSWORD), browsers))
    assert {page.status_code for page in pages} == {200}
    assert [browser.path for browser in browsers].count("/account") == 1
    assert [action for action, _, _ in events(app)].count("verified") == 1
