"""A person's path through every page, in any language."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyotp
from flask import Flask, abort
from playwright.sync_api import Page, expect

from harness.browsers import fill_in_own, served
from harness.processes import free_port
from harness.smtp_server import Server
from harness.visitor import PASSWORD
from tests.factories import travel
from webapp import create_app
from webapp.accounts import passwords, roles
from webapp.accounts.identifiers import email_addresses
from webapp.db.base import db
from webapp.delivery import circuit_breaker
from webapp.devmail import Mailbox
from webapp.emails import render
from webapp.extensions import mail
from webapp.outbox import kinds

# Each of these has a page.
ERRORS = (400, 403, 404, 405, 410, 413, 429, 500, 503)
OPERATOR = "operator"

# Where an email is shown outside of any page.
BY_ITSELF = "about:blank"


@contextmanager
def touring(environ: Mapping[str, str], folder: Path) -> Iterator[Flask]:
    """The app at its PUBLIC_URL, with a mailbox in this folder, and `/broken/<code>`, which answers that error."""
    port = free_port()
    app = create_app({**environ, "APP_ENV": "development", "PUBLIC_URL": f"http://localhost:{port}"})
    app.instance_path = str(folder)
    app.add_url_rule("/broken/<int:code>", view_func=abort)
    with served(app, port):
        yield app
    mail.close()
    with app.app_context():
        db.engine.dispose()


class Tour:
    """`visit` is called with the name of each page that is shown."""

    def __init__(
        self, page: Page, app: Flask, send_due: Callable[[], None], smtp: Server, visit: Callable[[str], None]
    ) -> None:
        self.page, self.app, self.send_due, self.smtp, self.visit = page, app, send_due, smtp, visit

    def go(self) -> None:
        self.outside()
        self.waiting()
        self.verifying()
        for code in ERRORS:
            self.open(f"/broken/{code}")
        self.mailbox()
        self.operations()
        self.mails()

    def open(self, path: str, name: str = "") -> None:
        self.page.goto(path)
        self.visit(name or path)

    def fill(self, **fields: str) -> None:
        for name, text in fields.items():
            self.page.locator(f"#{name}").fill(text)

    def press(self, action: str, shown: str, button: str = "[type=submit]", *, within: str = "main") -> None:
        """Press the button of the form with this action; the other two arguments tell similar forms apart."""
        with self.page.expect_navigation():
            self.page.locator(f'{within} form[action="{action}"] {button}').first.click()
        self.visit(shown)

    def outside(self) -> None:
        self.open("/")
        self.open("/login")
        self.press("/login", "login with errors")
        self.page.goto("/signup")
        self.fill(username="mick19", full_name="Mick Example", email="nobody@gmial.com", password="password")
        expect(self.page.locator(".meter .level")).not_to_be_empty()
        self.visit("signup filled in")
        self.fill(email="")
        self.press("/signup", "signup with errors")

    def waiting(self) -> None:
        self.page.goto("/signup")
        self.fill(username="mick19", full_name="Mick Example", email="mick@gmial.com", password=PASSWORD)
        fill_in_own(self.page)
        self.press("/signup", "waiting: leaving, with a suggestion")
        self.page.locator("#wrong-address summary").click()
        self.page.locator("#wrong-address #email").fill("mick@gmail.com")
        self.press("/signup/email", "waiting: on its way", within="#wrong-address")
        with self.app.app_context():
            circuit_breaker.trip("nobody answers")
            db.session.commit()
        self.open("/signup/sent", "waiting: slow")
        with self.app.app_context():
            circuit_breaker.reset()
            db.session.commit()
        for reply, name in {"451 later": "waiting: delayed", "550 no such user": "waiting: failed"}.items():
            self.smtp.actions["RCPT"] = reply
            self.send_due()
            self.open("/signup/sent", name)
        self.smtp.actions.clear()
        self.press("/signup/resend", "waiting: sent again")
        self.send_due()
        self.open("/signup/sent", "waiting: sent")
        self.fill(code="1")
        self.press("/signup/code", "waiting: wrong code")
        self.open("/signup", "signup: already signed up here")

    def verifying(self) -> None:
        link = self.smtp.mails[-1].link
        self.open(link, "confirm")
        self.page.locator("details summary").click()
        self.fill(new_password="password")
        self.press("/verify", "confirm: weak password", "details [type=submit]")
        self.press("/verify", "disowned", "[value=disown]")
        self.press("/verify/undo", "confirm: not disowned")
        self.page.context.clear_cookies(name="session")
        self.open(link, "confirm: another browser")
        self.press("/verify", "confirm: another browser, without the password")
        travel(self.app, 2 * 86400)
        self.open(link, "expired")
        self.press("/verify/renew", "renewed")
        self.send_due()
        self.page.goto(link)
        self.fill(password=PASSWORD)
        self.press("/verify", "account")
        self.open(link, "already verified")
        self.open("/signup", "signup: signed in")
        self.open("/verify/garbage", "invalid link")
        self.account()
        self.forgotten()

    def account(self) -> None:
        for path in ("/account/sessions", "/account/export", "/logout"):
            self.open(path)
        self.page.goto("/account/profile")
        self.fill(username="not@name")
        self.press("/account/profile", "profile with errors")
        self.open("/account/email")
        self.press("/account/email", "address with errors")
        self.fill(email="new@example.com", password=PASSWORD)
        self.press("/account/email", "address: on its way")
        self.fill(code="1")
        self.press("/account/email/code", "address: wrong code")
        self.send_due()
        link = self.smtp.mails[-1].link
        self.open(link, "address: confirm")
        self.press("/account/email/confirm", "account: address changed")
        self.open(link, "address: used link")
        self.open("/account/email/confirm/garbage", "address: invalid link")
        self.page.goto("/account/delete")
        self.press("/account/delete", "delete with errors")
        self.send_due()
        link = self.smtp.mails[-1].link
        self.open(link, "put back")
        self.press("/account/email/revoke", "put back: done")
        self.open(link, "put back: used link")
        self.open("/account/email/revoke/garbage", "put back: invalid link")

    def forgotten(self) -> None:
        self.open("/forgot")
        self.press("/forgot", "forgot with errors")
        self.fill(email="mick@gmail.com")
        self.press("/forgot", "forgot: sent")
        self.send_due()
        self.open(self.smtp.to("mick@gmail.com")[-1].link, "reset")
        self.fill(password="password")
        self.press("/reset", "reset: weak password")
        self.fill(password=PASSWORD)
        self.press("/reset", "account, with a new password")
        self.open("/account/password")
        self.press("/account/password", "password with errors")
        self.open("/reset/garbage", "reset: invalid link")

    def mailbox(self) -> None:
        """The development mailbox holds what was sent so far."""
        self.open("/dev/mailbox", "mailbox: empty")
        box = Mailbox(Path(self.app.instance_path) / "mailbox")
        for sent in self.smtp.mails:
            box.save(sent.content)
        self.open("/dev/mailbox", "mailbox")
        self.open("/dev/mailbox?q=nothing-like-it", "mailbox: nothing found")
        mail_id = box.list()[0].id
        for view in ("html", "phone", "text", "headers", "source"):
            self.open(f"/dev/mailbox/{mail_id}?view={view}", f"mailbox: {view}")
        self.open(f"/dev/mailbox/{mail_id}/delete", "mailbox: deleting asks")

    def operations(self) -> None:
        self.page.context.clear_cookies(name="session")
        self.open("/ops", "ops: not for you")
        with self.app.app_context():
            password_hash = passwords.hash(PASSWORD)
            address = email_addresses.parse_address(f"{OPERATOR}@example.com")
            roles.create(address, username=OPERATOR, password_hash=password_hash, role="admin")
        self.page.goto("/login")
        self.fill(identifier=OPERATOR, password=PASSWORD)
        self.press("/login", "account of an operator")
        for path in (
            "",
            "/mails",
            "/mails?code=x",
            "/dead",
            "/users",
            "/users?q=nobody",
            "/workers",
            "/audit",
            "/pause",
            "/resume",
            "/test",
        ):
            self.open(f"/ops{path}")
        self.open("/ops/retry?status=dead", "ops: retry")
        self.people()
        self.second_factor()
        self.page.goto("/ops/mails")
        self.page.locator("td a").first.click()
        self.visit("ops: a mail")
        self.page.goto("/ops/pause")
        self.fill(reason="moving house")
        self.press("/ops/pause", "ops: paused")

    def people(self) -> None:
        """The person who signed up first; locked at the end."""
        travel(self.app, 700)
        self.open("/ops/users/1", "ops: a person")
        lock = "/ops/users/1/lock"
        self.open(lock, "ops: lock")
        self.press(lock, "ops: the password is asked")
        self.fill(password="wrong")
        self.press(lock, "ops: the password was wrong")
        self.fill(password=PASSWORD)
        self.press(lock, "ops: a locked person")
        self.open(lock, "ops: locked already")

    def second_factor(self) -> None:
        """The operator's second factor; off again at the end."""
        begin = "/account/second-factor"
        self.app.config["REQUIRE_SECOND_FACTOR"] = True
        self.open("/ops", "second factor: required")
        self.app.config["REQUIRE_SECOND_FACTOR"] = False
        self.fill(password=PASSWORD)
        self.press(begin, "second factor: to scan")
        phone = pyotp.TOTP(self.page.locator(".secret-key").inner_text().replace(" ", ""))
        self.press(f"{begin}/confirm", "second factor: no code")
        self.fill(code=phone.now())
        self.press(f"{begin}/confirm", "second factor: recovery codes")
        sheet = self.page.locator(".recovery code").all_inner_texts()
        self.open(begin, "second factor: on")
        travel(self.app, 700)
        for path in ("/account/export", "/account/email", "/account/password", "/account/delete"):
            self.page.goto(path)
            self.press(path, f"second factor: asked at {path}, with errors")
        act = "/ops/users/1/unlock"
        self.page.goto(act)
        self.press(act, "ops: the code is asked")
        self.page.context.clear_cookies(name="session")
        self.page.goto("/login")
        self.fill(identifier=OPERATOR, password=PASSWORD)
        self.press("/login", "login: the code is asked")
        self.page.locator("details summary").click()
        self.fill(recovery_code="wrong")
        self.press("/login/code", "login: a wrong recovery code")
        self.fill(recovery_code=sheet[0])
        self.press("/login/code", "account, with a recovery code")
        self.open(f"{begin}/codes", "second factor: new recovery codes")
        self.page.goto(f"{begin}/off")
        self.press(f"{begin}/off", "second factor: turning it off, with errors")
        self.fill(password=PASSWORD, recovery_code=sheet[1])
        self.press(f"{begin}/off", "account, without a second factor")

    def mails(self) -> None:
        """Each on its own: in the mailbox, no script may look inside."""
        for template in kinds.TEMPLATES:
            with self.app.app_context():
                html = render.sample(template, self.page.evaluate("navigator.language.slice(0, 2)")).html or ""
            self.page.goto(BY_ITSELF)
            self.page.set_content(html)
            self.visit(f"mail: {template}")
