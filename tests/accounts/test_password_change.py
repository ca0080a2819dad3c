"""Forgotten passwords, reset by whoever has the mailbox."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from limits import parse_many
from sqlalchemy import func, select, update

from harness.smtp_server import Mail, Server
from harness.visitor import PASSWORD, Visitor
from tests.factories import travel
from tests.pages.test_verify import everything
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.pages.shared import mail_status

Send = Callable[[], None]

# These look the same on every database.
on_embedded = pytest.mark.parametrize("backend", ["embedded"], indirect=True)

NEW = "a new long password"
ADDRESS = "mick@example.com"


@pytest.fixture
def owner(visitor: Visitor, send_due: Send, smtp: Server) -> Visitor:
    """Someone who is verified and signed in."""
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[-1].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"
    return visitor


def forget(visitor: Visitor, address: str = ADDRESS) -> Visitor:
    visitor.open("/forgot")
    visitor.submit("/forgot", email=address)
    return visitor


def last(smtp: Server, subject: str) -> Mail:
    return [mail for mail in smtp.mails if subject in mail.message["Subject"]][-1]


def reset_link(smtp: Server) -> str:
    return last(smtp, "Set a new password").link


def sign_in(visitor: Visitor, password: str, identifier: str = "mick19") -> str:
    """Return the path that it leads to."""
    visitor.http.cookies.clear()
    visitor.open("/login")
    visitor.submit("/login", identifier=identifier, password=password)
    return visitor.path


def count(app: Flask, action: str) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).where(AuditEvent.action == action)) or 0


def find_users(app: Flask) -> list[User]:
    with app.app_context():
        return list(db.session.scalars(select(User).order_by(User.id)))


def test_a_forgotten_password_is_set_anew_and_its_owner_signs_in_with_it(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.open("/login")
    assert 'href="/forgot"' in another_visitor.page.text
    forget(another_visitor)
    assert another_visitor.path == "/forgot/sent"
    assert "we're sending a link there" in another_visitor.text
    assert "60 minutes after" in another_visitor.text
    send_due()
    link = reset_link(smtp)
    assert link.startswith("http://signup.example/reset/")
    another_visitor.open(link, follow=False)
    assert another_visitor.page.headers["location"] == "/reset"
    cookie = another_visitor.page.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/reset"} <= set(cookie.split("; "))
    another_visitor.open("/reset")
    assert "m•••@example.com" in another_visitor.text
    another_visitor.submit("/reset", password="short")
    assert another_visitor.page.status_code == 422
    another_visitor.submit("/reset", password="mick19mick19")
    assert "This is easy to guess" in another_visitor.text
    # The link alone signs nobody in.
    assert another_visitor.open("/account").url.path == "/login"
    another_visitor.open("/reset")
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.path == "/account"
    assert "Your password was changed. You were signed out everywhere else." in another_visitor.text
    assert owner.open("/account").url.path == "/login"
    assert sign_in(another_visitor, PASSWORD) == "/login"
    assert sign_in(another_visitor, NEW) == "/account"
    assert count(app, "password_reset") == 1


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Windows"),
        ("Visit http://evil.example Mick <b>", "an unknown browser"),
    ],
)
def test_the_mail_says_when_and_on_what_its_link_was_asked_for_and_nothing_that_was_typed(
    owner: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server, agent: str, told: str
) -> None:
    another_visitor.http.headers["User-Agent"] = agent
    forget(another_visitor)
    send_due()
    mail = last(smtp, "Set a new password")
    assert re.search(rf"requested on \d+ \w+ \d{{4}}, \d\d:\d\d UTC, from {told}\.", mail.text)
    for part in (mail.text, mail.html, mail.content.decode()):
        assert "evil" not in part
        assert "127.0.0.1" not in part


@on_embedded
def test_emails_name_the_country_that_the_proxy_says(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    app.config["COUNTRY_HEADER"] = "CF-IPCountry"
    another_visitor.http.headers.update({"User-Agent": "(Android) Firefox/140.0", "CF-IPCountry": "TH"})
    forget(another_visitor)
    send_due()
    assert "from Firefox on Android (Thailand)." in last(smtp, "Set a new password").text
    another_visitor.open(reset_link(smtp))
    another_visitor.submit("/reset", password=NEW)
    with app.app_context():
        db.session.execute(update(OutgoingEmail).where(OutgoingEmail.status == "queued").values(locale="th"))
        db.session.commit()
    send_due()
    assert "Firefox บน Android (ไทย)" in smtp.mails[-1].text


@on_embedded
def test_emails_name_no_country_that_no_proxy_knows(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.http.headers.update({"User-Agent": "(Android) Firefox/140.0"})
    # Anyone could send the header if no proxy is known to set it.
    unset = [(None, "TH")]
    # Nobody says it; nobody knows it; Tor; unknown to us; not capital; more than one; not a country.
    told = [("CF-IPCountry", said) for said in ("", "XX", "T1", "ZZ", "th", "TH, DE", "<b>")]
    for header, said in unset + told:
        app.config["COUNTRY_HEADER"] = header
        another_visitor.http.headers["CF-IPCountry"] = said
        forget(another_visitor)
        travel(app, 86400)
        send_due()
        assert "from Firefox on Android." in last(smtp, "Set a new password").text
    assert len(smtp.mails) == 1 + len(unset + told)


@on_embedded
def test_the_owner_is_told_when_and_from_where_and_what_to_do(
    owner: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    another_visitor.http.headers["User-Agent"] = "Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0"
    forget(another_visitor)
    send_due()
    another_visitor.open(reset_link(smtp))
    another_visitor.submit("/reset", password=NEW)
    send_due()
    told = last(smtp, "Your Acme password was changed")
    assert told.recipients == [ADDRESS]
    assert re.search(r"On \d+ \w+ \d{4}, \d\d:\d\d UTC, from Firefox on Android, IP 127\.0\.0\.1\.", told.text)
    assert "If it wasn't you, set a new password right away" in told.text
    assert told.link == "http://signup.example/forgot"


def test_fifty_looks_at_a_link_for_a_new_password_change_nothing_and_the_click_still_works(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    forget(another_visitor)
    send_due()
    link = reset_link(smtp)
    before = everything(app)
    for _ in range(25):
        owner.open(link)
        owner.http.head(link)
    assert everything(app) == before
    another_visitor.open(link)
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.path == "/account"


@on_embedded
def test_altered_foreign_and_used_links_get_one_and_the_same_404(
    owner: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    verify_link = smtp.mails[0].link
    forget(another_visitor)
    send_due()
    link = reset_link(smtp)
    token = link.rpartition("/")[2]
    another_visitor.open(link)
    opened = another_visitor.hidden("/reset")
    another_visitor.submit("/reset", password=NEW)
    pages = set()
    altered = [token, token[:-1], ("A" if token[0] != "A" else "B") + token[1:], "garbage", "%00", "é" * 43]
    for text in [*altered, verify_link.rpartition("/")[2]]:
        another_visitor.open(f"/reset/{text}")
        assert another_visitor.page.status_code == 404, text
        pages.add(another_visitor.text)
    another_visitor.page = another_visitor.http.post("/reset", data=opened)
    assert another_visitor.page.status_code == 404
    pages.add(another_visitor.text)
    assert len(pages) == 1
    assert "Get a new link" in pages.pop()
    # Nor does a link of one kind work as another kind.
    assert another_visitor.open(f"/verify/{token}").status_code == 404


def test_an_expired_link_offers_a_new_one(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    forget(another_visitor)
    # However long its email waited.
    travel(app, 7200)
    send_due()
    link = reset_link(smtp)
    travel(app, 3590)
    assert another_visitor.open(link).status_code == 200
    travel(app, 20)
    assert another_visitor.open(link).status_code == 410
    another_visitor.submit("/reset/renew", csrf_token="")
    assert another_visitor.page.status_code == 410
    another_visitor.submit("/reset/renew")
    assert another_visitor.path == "/forgot/sent"
    send_due()
    assert reset_link(smtp) != link
    another_visitor.open(reset_link(smtp))
    another_visitor.submit("/reset", password=NEW)
    assert sign_in(another_visitor, NEW) == "/account"


def test_one_reset_consumes_all_other_links_and_those_that_wait(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    links = []
    for _ in range(2):
        forget(another_visitor)
        send_due()
        links.append(reset_link(smtp))
    forget(another_visitor)
    another_visitor.open(links[0])
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.open(links[1]).status_code == 404
    sent = len(smtp.mails)
    send_due()
    assert [mail.message["Subject"] for mail in smtp.mails[sent:]] == ["Your Acme password was changed"]
    with app.app_context():
        waited = select(OutgoingEmail).where(OutgoingEmail.status == "canceled")
        assert [email.last_error for email in db.session.scalars(waited)] == ["the password was changed"]


def test_an_owner_whose_address_would_be_refused_today_still_resets_the_password(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    address = "mick%example.net@example.com"
    with app.app_context():
        db.session.execute(update(User).values(email=address, email_key=address))
        db.session.commit()
    forget(another_visitor, address)
    assert another_visitor.path == "/forgot/sent"
    send_due()
    assert last(smtp, "Set a new password").recipients == [address]
    # But nobody proves one like it.
    owner.open("/account/email")
    owner.submit("/account/email", email="ann%example.net@example.com", password=PASSWORD)
    assert owner.page.status_code == 422


@on_embedded
def test_a_link_is_sent_again_from_the_page_that_says_so(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_visitor.open("/forgot?next=/account/sessions")
    begun = time.monotonic()
    another_visitor.submit("/forgot?next=/account/sessions", email=ADDRESS)
    assert "It usually arrives within a minute." in another_visitor.text
    told = re.search(r"You can send another in (\d+) seconds", another_visitor.text)
    assert told
    # The time of asking is kept in whole seconds, and the rest is rounded.
    assert 58 - (time.monotonic() - begun) <= int(told[1]) <= 60
    # Instead of a minute's wait: the time of asking is in a signed cookie.
    monkeypatch.setattr(mail_status, "RESEND_SECONDS", 0)
    another_visitor.open(str(another_visitor.page.url))
    assert "You can send another" not in another_visitor.text
    send_due()
    travel(app, 61)
    # Without a word typed, and to where its person wanted to go.
    another_visitor.submit("/forgot?next=/account/sessions")
    assert another_visitor.path == "/forgot/sent"
    send_due()
    first, second = [mail.link for mail in smtp.mails if "Set a new password" in mail.message["Subject"]]
    assert first != second
    another_visitor.open(second)
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.path == "/account/sessions"


def test_of_twenty_who_use_one_link_at_once_one_wins(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    forget(another_visitor)
    send_due()
    link = reset_link(smtp)
    browsers = [Visitor("http://signup.example", app) for _ in range(20)]
    for browser in browsers:
        browser.open(link)

    def use(browser: Visitor) -> int:
        return browser.submit("/reset", follow=False, password=NEW).status_code

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(use, browsers)) == [303] + 19 * [404]
    assert count(app, "password_reset") == 1
    send_due()
    assert len([mail for mail in smtp.mails if "was changed" in mail.message["Subject"]]) == 1


def test_who_resets_before_verifying_proves_the_address_and_its_rivals_lose_it(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.sign_up(username="rival", password="the rival's password")
    send_due()
    rivals_link = smtp.mails[-1].link
    visitor.sign_up()
    phone = forget(Visitor("http://signup.example", app))
    send_due()
    own_link = last(smtp, "is your Acme code").link
    phone.open(reset_link(smtp))
    assert "mick19" in phone.page.text
    phone.submit("/reset", password=NEW)
    assert phone.path == "/account"
    rival, mick = find_users(app)
    assert (rival.is_email_verified, mick.is_email_verified, mick.purge_at) == (False, True, None)
    assert another_visitor.open(rivals_link).status_code == 404
    assert "Already confirmed" in visitor.open(own_link).text
    visitor.open("/signup/sent")
    assert "Your email address is confirmed" in visitor.text
    assert sign_in(phone, NEW) == "/account"
    assert count(app, "verified") == 1


@on_embedded
def test_the_browser_that_signed_up_resets_its_own_signup_whoever_came_after(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    another_visitor.sign_up(username="rival")
    forget(visitor)
    send_due()
    visitor.open(reset_link(smtp))
    visitor.submit("/reset", password=NEW)
    assert [user.username for user in find_users(app) if user.is_email_verified] == ["mick19"]


def test_a_signup_whose_owner_verified_meanwhile_can_reset_nothing(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    another_visitor.sign_up(username="rival")
    forget(another_visitor)
    send_due()
    link = reset_link(smtp)
    another_visitor.open(link)
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[-1].link)
    visitor.submit("/verify")
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.page.status_code == 404
    assert sign_in(another_visitor, NEW, ADDRESS) == "/login"
    assert visitor.open("/account").url.path == "/account"


@on_embedded
def test_a_username_taken_meanwhile_is_chosen_anew(
    visitor: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up(email="other@example.com")
    send_due()
    another_visitor.sign_up()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    forget(another_visitor)
    send_due()
    another_visitor.open(reset_link(smtp))
    another_visitor.submit("/reset", password=NEW)
    assert another_visitor.page.status_code == 422
    assert "That username was just taken" in another_visitor.text
    another_visitor.submit("/reset", password=NEW, username="a@b")
    assert another_visitor.page.status_code == 422
    another_visitor.submit("/reset", password=NEW, username="mick20")
    assert another_visitor.path == "/account"
    assert sign_in(another_visitor, NEW, "mick20") == "/account"


@on_embedded
def test_a_link_to_an_address_that_was_changed_shows_and_sets_nothing(
    visitor: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    visitor.sign_up()
    forget(another_visitor)
    send_due()
    another_visitor.open(reset_link(smtp))
    shown = another_visitor.hidden("/reset")
    visitor.open("/signup/sent")
    visitor.submit("/signup/email", email="elsewhere@example.com")
    assert another_visitor.open("/reset").status_code == 404
    another_visitor.page = another_visitor.http.post("/reset", data={**shown, "password": NEW})
    assert another_visitor.page.status_code == 404


def test_nobody_gets_a_mail_at_an_address_that_nobody_has(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    forget(visitor, "nobody@example.com")
    send_due()
    assert smtp.mails == []
    with app.app_context():
        email = db.session.scalars(select(OutgoingEmail)).one()
        assert (email.status, email.last_error) == ("canceled", "no account has this address")
        assert db.session.scalars(select(VerifyEmail)).all() == []


@on_embedded
def test_an_account_is_written_to_at_its_own_spelling_and_in_its_own_language(
    owner: Visitor, another_visitor: Visitor, send_due: Send, smtp: Server
) -> None:
    another_visitor.http.headers["Accept-Language"] = "th"
    forget(another_visitor, "MICK@Example.COM")
    send_due()
    assert smtp.mails[-1].recipients == [ADDRESS]
    assert "Forgot your password?" in smtp.mails[-1].text


def test_links_have_a_budget_of_their_own_and_the_newest_waits(
    visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many("1/minute, 3/hour")
    visitor.sign_up()
    for _ in range(3):
        forget(visitor)
    send_due()
    assert len(smtp.mails) == 2
    first = reset_link(smtp)
    send_due()
    assert len(smtp.mails) == 2
    travel(app, 60)
    send_due()
    assert len(smtp.mails) == 3
    # Whichever arrived works.
    visitor.open(first)
    visitor.submit("/reset", password=NEW)
    assert visitor.path == "/account"


@on_embedded
def test_the_form_asks_for_an_address(visitor: Visitor, app: Flask) -> None:
    for typed in ("", "mick19", "a@b@c", "\r\nBcc: x@example.com"):
        forget(visitor, typed)
        assert visitor.page.status_code == 422, typed
    visitor.submit("/forgot", email=ADDRESS, csrf_token="")
    assert visitor.page.status_code == 400
    assert f'value="{ADDRESS}"' in visitor.page.text
    visitor.open("/forgot/sent")
    assert visitor.path == "/forgot"
    with app.app_context():
        assert db.session.scalars(select(OutgoingEmail)).all() == []


@on_embedded
def test_the_button_sets_only_the_password_of_what_its_page_showed(
    owner: Visitor, another_visitor: Visitor, app: Flask, send_due: Send, smtp: Server
) -> None:
    forget(another_visitor)
    send_due()
    another_visitor.open(reset_link(smtp))
    shown = another_visitor.hidden("/reset")
    another_visitor.sign_up(username="other", email="other@example.com")
    forget(another_visitor, "other@example.com")
    send_due()
    another_visitor.open(reset_link(smtp))
    another_visitor.submit("/reset", password=NEW, verification=shown["verification"])
    assert another_visitor.path == "/reset"
    assert "o••••@example.com" in another_visitor.text
    assert count(app, "password_reset") == 0


def test_neither_token_nor_password_is_in_database_or_log(
    owner: Visitor, app: Flask, send_due: Send, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    forget(owner)
    send_due()
    link = reset_link(smtp)
    owner.open(link)
    owner.submit("/reset", password=NEW)
    written = repr(everything(app)) + caplog.text
    assert "request" in caplog.text
    assert link.rpartition("/")[2] not in written
    assert NEW not in written
    assert ADDRESS not in caplog.text
