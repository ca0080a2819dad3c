"""People under /ops: found, understood, helped and locked out; and the password that this takes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import Column, select

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_email_change import is_signed_in, sign_in
from tests.accounts.test_locked import of
from tests.factories import make_signup, travel
from tests.pages.test_ops import admin, next_page, operator, turn
from tests.pages.test_verify import everything
from webapp.accounts import users
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.outbox import pause

__all__ = ["admin"]

Send = Callable[[], None]


def act(visitor: Visitor, user: User, action: str) -> str:
    """Press the button of an action's page; return its URL."""
    path = f"/ops/users/{user.id}/{action}"
    visitor.open(path)
    visitor.submit(path)
    return path


def acts(app: Flask) -> list[tuple[str, int | None, str | None]]:
    """What operators did to people on these pages."""
    with app.app_context():
        found = db.session.scalars(select(AuditEvent).where(AuditEvent.actor.like("user %")).order_by(AuditEvent.id))
        return [(event.action, event.user_id, event.actor) for event in found]


def usernames(app: Flask) -> set[str]:
    with app.app_context():
        return set(db.session.scalars(select(User.username)))


def test_i_never_got_it_is_helped_in_four_clicks(
    admin: Visitor, visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    visitor.sign_up(full_name="Mick Müller")
    send_due()
    smtp.actions.clear()
    admin.open("/ops/users?q=Mick@EXAMPLE.com")
    assert "mick19 pending mick@example.com Mick Müller" in admin.text
    mick = of(app)
    assert f'href="/ops/users/{mick.id}"' in admin.page.text
    admin.open(f"/ops/users/{mick.id}")
    assert "dead verify_email mick@example.com" in admin.text
    assert "no such user" in admin.text
    mail = re.findall(r'href="(/ops/mails/[^"?]+)"', admin.page.text)[0]
    act(admin, mick, "resend")
    assert admin.path == f"/ops/users/{mick.id}"
    assert "Sending the verification email again." in admin.text
    act(admin, mick, "resend")
    assert "already on its way" in admin.text
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"
    admin.open(f"/ops/users/{mick.id}")
    assert "mick19 verified" in admin.text
    admin.open(mail)
    assert f'href="/ops/users/{mick.id}"' in admin.page.text
    assert acts(app) == [("verification_resent", mick.id, "user 1 (admin)")]


def test_a_person_is_shown_with_sessions_and_history(
    admin: Visitor, member: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    another_visitor.http.headers["User-Agent"] = "Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0"
    assert sign_in(another_visitor)
    admin.open(f"/ops/users/{of(app).id}")
    for words in ("Firefox Android 127.0.0.1", "signed_in", "verified", "signed_up", "verify_email"):
        assert words in admin.text
    admin.open("/ops/audit")
    assert f'href="/ops/users/{of(app).id}"' in admin.page.text


def test_a_person_is_shown_with_fields_of_ones_own(
    admin: Visitor, member: Visitor, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that no field of yours has.
    monkeypatch.setattr(User, "boat_in_tests", "<Nautilus>", raising=False)
    monkeypatch.setattr(users, "OWN_FIELDS", (Column("boat_in_tests", info={"label": "Your boat"}),))
    admin.open(f"/ops/users/{of(app).id}")
    assert "Your boat <Nautilus>" in admin.text


def test_people_are_listed_page_by_page(admin: Visitor, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webapp.pages.ops.users.PAGE", 3)
    for number in range(5):
        make_signup(app, username=f"ann{number}", address=f"ann{number}@example.com")
    for query, count in (("", 6), ("?q=ann", 5)):
        admin.open(f"/ops/users{query}")
        found = re.findall(r'href="(/ops/users/\d+)"', admin.page.text)
        admin.open(re.findall(r'rel="next"\s+href="([^"]+)"', admin.page.text)[0].replace("&amp;", "&"))
        found += re.findall(r'href="(/ops/users/\d+)"', admin.page.text)
        assert len(found) == len(set(found)) == count
    # The other way round, also of those found.
    for query, count in (("", 6), ("?q=ann", 5)):
        admin.open(f"/ops/users{query}")
        newest = re.findall(r'href="(/ops/users/\d+)"', admin.page.text)
        assert turn(admin) == "ascending"
        assert f"3 of {count}" in admin.text
        found = re.findall(r'href="(/ops/users/\d+)"', admin.page.text)
        next_page(admin)
        assert "Page 2 of 2" in admin.text
        found += re.findall(r'href="(/ops/users/\d+)"', admin.page.text)
        assert len(found) == count
        assert found[:-4:-1] == newest
    assert '<input type="hidden" name="sort" value="oldest">' in admin.page.text
    admin.open("/ops/users?q=nobody@example.com")
    assert "No matching users." in admin.text
    assert "/ops/mails?address=nobody@example.com" in admin.page.text.replace("%40", "@")
    for odd in ("-1", "-99999999999999999999", "99999999999999999999", "9" * 5000, "x", "%C2%B2"):
        assert "ann4" in admin.open(f"/ops/users?before={odd}").text
    for odd in ("%00", "x" * 900, "9" * 200):
        assert admin.open(f"/ops/users?q={odd}").status_code == 200
    for path in ("/99", "/99/lock", "/99999999999999999999", "/1/explode"):
        assert admin.open(f"/ops/users{path}").status_code == 404


def test_an_account_is_locked_and_unlocked(
    admin: Visitor, member: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    mick = of(app)
    act(admin, mick, "lock")
    assert "mick19 locked" in admin.text
    assert member.open("/auth").status_code == 401
    assert not sign_in(another_visitor)
    for action in ("lock", "resend", "end-sessions"):
        path = f"/ops/users/{mick.id}/{action}"
        admin.open(path)
        assert "You can't do that with this account now." in admin.text
        admin.open(f"/ops/users/{mick.id}/unlock")
        assert admin.http.post(path, data=admin.hidden(f"/ops/users/{mick.id}/unlock")).status_code == 409
    act(admin, mick, "unlock")
    assert "mick19 verified" in admin.text
    assert sign_in(another_visitor)
    assert acts(app) == [("locked", mick.id, "user 1 (admin)"), ("unlocked", mick.id, "user 1 (admin)")]


def test_all_sessions_of_a_person_are_ended(admin: Visitor, member: Visitor, app: Flask) -> None:
    act(admin, of(app), "end-sessions")
    assert "Ended 1 session." in admin.text
    assert "Not signed in anywhere." in admin.text
    assert not is_signed_in(member)
    assert sign_in(member)


def test_a_deleted_account_is_gone_and_its_address_told_by_whom(
    admin: Visitor, member: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    act(admin, of(app), "delete")
    assert admin.path == "/ops/users"
    assert usernames(app) == {"admin"}
    assert not is_signed_in(member)
    send_due()
    (mail,) = smtp.mails
    assert mail.message["Subject"] == "Your Acme account was deleted"
    for words in ("We deleted the Acme account of mick@example.com.", "It was deleted on"):
        assert words in mail.text
    # Neither where the operator is nor that a password was entered.
    assert "127.0.0.1" not in mail.text
    assert "password" not in mail.text
    assert acts(app) == [("account_deleted", None, "user 1 (admin)")]


def test_whoever_never_proved_the_address_is_deleted_without_a_mail(
    admin: Visitor, visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    act(admin, of(app), "delete")
    send_due()
    assert smtp.mails == []
    assert visitor.open("/signup/sent").url.path == "/signup"


def test_nobody_locks_or_deletes_the_own_account_by_a_slip(admin: Visitor, app: Flask) -> None:
    own = of(app, "admin")
    admin.open(f"/ops/users/{own.id}/end-sessions")
    token = admin.hidden(f"/ops/users/{own.id}/end-sessions")
    for action in ("lock", "delete"):
        assert admin.http.post(f"/ops/users/{own.id}/{action}", data=token).status_code == 409
    assert is_signed_in(admin)


def test_a_viewer_sees_people_and_does_nothing(member: Visitor, app: Flask) -> None:
    viewer, mick = operator(app, "viewer"), of(app)
    viewer.open(f"/ops/users/{mick.id}")
    assert f"/ops/users/{mick.id}/lock" not in viewer.page.text
    for action in ("resend", "end-sessions", "lock", "unlock", "delete"):
        path = f"/ops/users/{mick.id}/{action}"
        viewer.open(path)
        assert f'action="{path}"' not in viewer.page.text
        assert viewer.http.post(path).status_code == 403
    assert is_signed_in(member)


def test_nothing_is_done_without_a_token_or_for_another_than_the_page_showed(
    admin: Visitor, member: Visitor, app: Flask
) -> None:
    mick = of(app)
    path = f"/ops/users/{mick.id}/lock"
    admin.open(path)
    shown = admin.hidden(path)
    assert admin.http.post(path, data={**shown, "csrf_token": ""}).status_code == 400
    # As if a restored database gave the number to someone else.
    assert admin.http.post(path, data={**shown, "key": f"{mick.id}:2001-01-01"}).status_code == 404
    assert is_signed_in(member)


def test_after_ten_minutes_an_action_takes_the_password_and_goes_on_with_what_was_asked(
    admin: Visitor, member: Visitor, app: Flask
) -> None:
    travel(app, 400)
    path = act(admin, of(app), "end-sessions")
    assert "Ended 1 session." in admin.text
    travel(app, 300)
    sign_in(member)
    path = act(admin, of(app), "lock")
    assert admin.page.status_code == 403
    assert "Enter your password" in admin.text
    assert "Please fix the following" not in admin.text
    assert is_signed_in(member)
    admin.submit(path, password="wrong")
    assert admin.page.status_code == 422
    assert "That password is wrong" in admin.text
    assert is_signed_in(member)
    admin.submit(path, password=PASSWORD)
    assert "The account is locked." in admin.text
    assert not is_signed_in(member)
    # That was enough for the next ten minutes.
    act(admin, of(app), "unlock")
    assert "The account is unlocked." in admin.text


def test_what_was_typed_for_an_action_is_kept_while_the_password_is_asked(admin: Visitor, app: Flask) -> None:
    travel(app, 700)
    admin.open("/ops/pause")
    admin.submit("/ops/pause", reason='the "provider" <moves>')
    with app.app_context():
        assert not pause.is_paused()
    admin.submit("/ops/pause", password=PASSWORD)
    assert 'by user 1 (admin): the "provider" <moves>' in admin.text


def test_a_forged_action_gets_no_page_that_asks_for_the_password(admin: Visitor, member: Visitor, app: Flask) -> None:
    travel(app, 700)
    path = f"/ops/users/{of(app).id}/delete"
    page = admin.http.post(path, data={"key": of(app).key})
    assert page.status_code == 400
    assert 'type="password"' not in page.text
    assert "mick19" in usernames(app)


def posts(app: Flask) -> list[str]:
    """Return the URL of each action under /ops, for the existing user and emails."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("ops.") and "POST" in (rule.methods or ()):
            texts = [re.sub("<int:[^>]+>", str(of(app).id), rule.rule)]
            for choice in re.findall(r"<any\(([^)]+)\):[^>]+>", rule.rule):
                names = [name.strip(" '\"") for name in choice.split(",")]
                texts = [re.sub(r"<any[^>]+>", name, text) for text in texts for name in names]
            found += texts
    return found


def test_no_action_is_done_with_a_stale_token_when_the_password_was_given_long_ago(
    admin: Visitor, visitor: Visitor, app: Flask
) -> None:
    visitor.sign_up()
    travel(app, 700)
    key, before = of(app).key, everything(app)
    paths = posts(app)
    assert {"/ops/retry", "/ops/pause", "/ops/test", f"/ops/users/{of(app).id}/end-sessions"} < set(paths)
    for path in paths:
        sent = {"csrf_token": "stale", "key": key, "reason": "a test", "email": "ann@example.com"}
        assert admin.http.post(path, data=sent).status_code == 400, path
    assert everything(app) == before


def test_looking_takes_no_password(admin: Visitor, app: Flask) -> None:
    travel(app, 700)
    for path in ("/ops", "/ops/users", "/ops/users/1", "/ops/users/1/lock", "/ops/pause"):
        assert admin.open(path).status_code == 200
