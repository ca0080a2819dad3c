"""No answer, and nothing that it takes to answer, reveals whether an address is known."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import httpx
import psycopg
import pytest
from argon2 import PasswordHasher
from flask import Flask
from limits import parse_many
from sqlalchemy import delete, event, select, update

from harness.smtp_server import Server
from harness.visitor import ASKED_FOR, PASSWORD, Visitor
from tests.factories import travel
from webapp.accounts import hash_cost, passwords, signup
from webapp.accounts.links import VerifyEmail
from webapp.accounts.support import actions
from webapp.accounts.users import User
from webapp.config import LIMITS
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail

Send = Callable[[], None]

WRONG_PASSWORD = "staple battery horse"  # noqa: S105 - a test's own
OWNERS_PASSWORD = "another horse battery"  # noqa: S105 - a test's own

# All of the same length, so that nothing else differs in length.
KINDS = {
    "new": "anna@example.com",
    "pending": "bert@example.com",
    "verified": "carl@example.com",
    # From before verification existed.
    "former": "dora@example.com",
}
OWNERS = {"new": "owner-a", "pending": "owner-b", "verified": "owner-c", "former": "owner-d"}
PROBES = {"new": "probe-a", "pending": "probe-b", "verified": "probe-c", "former": "probe-d"}

# A session cookie is compressed, so its length depends on the random values in it.
COOKIE_VARIES = 12


@dataclass(frozen=True)
class Seen:
    """What a request shows to its sender, and what it makes us do; `cookies`: the lengths of the cookies it sets."""

    status: int
    cookies: dict[str, int] = field(compare=False)
    headers: list[tuple[str, str]]
    body: str
    statements: list[str]
    hashes: int
    verifications: int

    @property
    def shown(self) -> tuple[int, list[tuple[str, str]], str]:
        return self.status, self.headers, self.body


class Hasher(PasswordHasher):
    """Does the work, and counts it."""

    hashes = 0
    verifications = 0

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        self.hashes += 1
        return super().hash(password, salt=salt)

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002 - argon2's name for it
        self.verifications += 1
        return super().verify(hash, password)


class Recorder:
    """Counts what a request does: statements (also those sent directly to psycopg), transactions and argon2 hashes."""

    def __init__(self, app: Flask, hasher: Hasher) -> None:
        self.hasher = hasher
        self.statements: list[str] = []
        with app.app_context():
            self.engine = db.engine
        event.listen(self.engine, "before_cursor_execute", self._on_statement)
        event.listen(self.engine, "checkout", self._on_checkout)
        event.listen(self.engine, "commit", self._on_commit)
        event.listen(self.engine, "rollback", self._on_rollback)

    def close(self) -> None:
        event.remove(self.engine, "before_cursor_execute", self._on_statement)
        event.remove(self.engine, "checkout", self._on_checkout)
        event.remove(self.engine, "commit", self._on_commit)
        event.remove(self.engine, "rollback", self._on_rollback)

    @contextmanager
    def begin(self) -> Iterator[None]:
        self.statements.clear()
        self.hasher.hashes = self.hasher.verifications = 0
        yield

    def _on_statement(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        self.statements.append(statement)

    def _on_checkout(self, connection: Any, *_: Any) -> None:
        if isinstance(connection, psycopg.Connection):
            note = self.statements.append

            class Cursor(psycopg.Cursor[Any]):
                """Does the work, and reports it."""

                def execute(self, query: Any, *arguments: Any, **options: Any) -> Self:
                    # The pool pings by how long a connection was idle, not by who asks.
                    if query != ";":
                        note(f"the driver: {query}")
                    return super().execute(query, *arguments, **options)

            connection.cursor_factory = Cursor

    def _on_commit(self, _connection: Any) -> None:
        self.statements.append("COMMIT")

    def _on_rollback(self, _connection: Any) -> None:
        self.statements.append("ROLLBACK")


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    """Limits on, but none set: each test sets the one that it is about."""
    return {**environ, "RATELIMIT_ENABLED": "true", **dict.fromkeys(LIMITS, "none")}


@pytest.fixture
def recorder(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    hasher = Hasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "hasher", lambda: hasher)
    recorder = Recorder(app, hasher)
    yield recorder
    recorder.close()


class Probe:
    """Someone who probes what an address is."""

    def __init__(self, kind: str, app: Flask, recorder: Recorder) -> None:
        self.address = KINDS[kind]
        self.username = PROBES[kind]
        self.owner = OWNERS[kind]
        self.visitor = Visitor("http://signup.example", app)
        self.recorder = recorder
        self.app = app

    def open(self, url: str) -> Seen:
        with self.recorder.begin():
            page = self.visitor.open(url, follow=False)
            return self._seen(page)

    def submit(self, action: str, /, *, on: str, **fields: str) -> Seen:
        self.visitor.open(on)
        # Its token works for the session's other forms too, whichever form the page shows.
        token = re.search(r'name="csrf_token" value="([^"]+)"', self.visitor.page.text)
        assert token
        with self.recorder.begin():
            page = self.visitor.http.post(action, data={"csrf_token": token[1], **fields}, follow_redirects=False)
            return self._seen(page)

    def sign_up(self, **fields: str) -> Seen:
        typed = {"username": self.username, "full_name": "", "email": self.address, "password": PASSWORD, **ASKED_FOR}
        return self.submit("/signup", on="/signup", **{**typed, **fields})

    def resend(self) -> Seen:
        return self.submit("/signup/resend", on="/signup/sent")

    def _seen(self, page: httpx.Response) -> Seen:
        assert int(page.headers["content-length"]) == len(page.content)
        # The length follows from the body, which depends on the digits of a number of seconds.
        unequal = {"content-length", "date", "x-request-id"}
        headers = [(name, self._general(value)) for name, value in page.headers.multi_items() if name not in unequal]
        hasher = self.recorder.hasher
        return Seen(
            page.status_code,
            {cookie.partition("=")[0]: len(cookie) for cookie in page.headers.get_list("set-cookie")},
            headers,
            self._general(page.text),
            list(self.recorder.statements),
            hasher.hashes,
            hasher.verifications,
        )

    def _general(self, text: str) -> str:
        """Return the text without what is specific to this probe."""
        text = text.replace(self.address, "<address>")
        for name in (self.username, self.owner):
            text = re.sub(rf"\b{name}\b", "<username>", text)
        text = re.sub(r'(name="csrf_token" value=)"[^"]+"', r'\1"<token>"', text)
        text = re.sub(r"^(\w+)=[^;]*;", r"\1=<cookie>;", text)
        text = re.sub(r"^\d+$", "<n>", text)
        return re.sub(r"\b\d+ seconds?\b", "<n> seconds", text)


@pytest.fixture
def probes(app: Flask, recorder: Recorder, send_due: Send, smtp: Server) -> list[Probe]:
    """One probe for an address of each kind, none of which has done anything yet."""
    owner = Visitor("http://signup.example", app)
    owner.sign_up(username=OWNERS["verified"], email=KINDS["verified"])
    send_due()
    confirm(owner, smtp)
    for kind in ("pending", "former"):
        Visitor("http://signup.example", app).sign_up(username=OWNERS[kind], email=KINDS[kind])
        send_due()
    with app.app_context():
        db.session.execute(delete(OutgoingEmail).where(OutgoingEmail.to_address == KINDS["former"]))
        db.session.execute(delete(VerifyEmail).where(VerifyEmail.email_key == KINDS["former"]))
        db.session.execute(update(User).where(User.email == KINDS["former"]).values(purge_at=None))
        db.session.commit()
    return [Probe(kind, app, recorder) for kind in KINDS]


def confirm(owner: Visitor, smtp: Server) -> None:
    owner.open(smtp.mails[-1].link)
    owner.submit("/verify", new_password=OWNERS_PASSWORD)
    assert owner.path == "/account"


def only(seen: list[Seen]) -> Seen:
    """Return what all of them saw."""
    first, *others = seen
    for other in others:
        assert other.statements == first.statements
        assert other == first
        _compare_cookies(first, other)
    return first


def _compare_cookies(first: Seen, other: Seen) -> None:
    assert first.cookies.keys() == other.cookies.keys()
    assert all(abs(length - other.cookies[name]) <= COOKIE_VARIES for name, length in first.cookies.items())


def only_shown(seen: list[Seen]) -> tuple[int, str]:
    """Return the status and body that all of them saw."""
    first, *others = seen
    for other in others:
        assert other.shown == first.shown
        _compare_cookies(first, other)
    return first.status, first.body


def test_signing_up_tells_no_address_from_another(probes: list[Probe]) -> None:
    seen = only([probe.sign_up() for probe in probes])
    assert seen.status == 303
    assert any("INSERT INTO users" in statement for statement in seen.statements)
    assert (seen.hashes, seen.verifications) == (1, 0)


def test_a_form_that_is_sent_twice_tells_no_address_from_another(probes: list[Probe]) -> None:
    first = only([probe.sign_up(nonce="of this page") for probe in probes])
    again = only([probe.sign_up(nonce="of this page") for probe in probes])
    assert again.shown == first.shown
    assert any("FROM verify_emails" in statement for statement in again.statements)
    assert not any("FROM verify_emails" in statement for statement in first.statements)


def test_a_signup_that_comes_back_tells_no_address_from_another(probes: list[Probe]) -> None:
    seen = only([probe.sign_up(username="@", password="") for probe in probes])
    assert seen.status == 422
    assert (seen.hashes, seen.verifications) == (0, 0)


def test_a_taken_username_is_told_whatever_the_address_is(probes: list[Probe]) -> None:
    for probe in probes:
        probe.username = OWNERS["verified"]
    seen = only([probe.sign_up() for probe in probes])
    assert seen.status == 422
    assert "That username is taken" in seen.body


def test_a_signup_without_a_csrf_token_tells_no_address_from_another(probes: list[Probe]) -> None:
    seen = only([probe.sign_up(csrf_token="") for probe in probes])
    assert seen.status == 400
    assert seen.hashes == 0


def test_sending_again_tells_no_address_from_another(probes: list[Probe], send_due: Send) -> None:
    for probe in probes:
        probe.sign_up()
    seen = only([probe.resend() for probe in probes])
    assert seen.status == 303
    send_due()
    only([probe.resend() for probe in probes])
    only([probe.resend() for probe in probes])
    send_due()
    seen = only([probe.resend() for probe in probes])
    assert (seen.hashes, seen.verifications) == (0, 0)


def test_changing_to_an_address_tells_it_from_no_other(probes: list[Probe]) -> None:
    for probe in probes:
        probe.sign_up(email=f"{probe.username}@example.com")
    seen = only([probe.submit("/signup/email", on="/signup/sent", email=probe.address) for probe in probes])
    assert seen.status == 303
    only([probe.open("/signup/sent") for probe in probes])


def test_an_account_that_changes_to_an_address_tells_it_from_no_other(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server
) -> None:
    for probe in probes:
        probe.sign_up(email=f"{probe.username}@example.com")
        send_due()
        probe.visitor.open(smtp.mails[-1].link)
        probe.visitor.submit("/verify")
    seen = only([ask_for(probe) for probe in probes])
    assert seen.status == 303
    assert (seen.hashes, seen.verifications) == (0, 1)

    def story() -> None:
        only([probe.open("/account/email") for probe in probes])
        only([probe.submit("/account/email/code", on="/account/email", code="1234567") for probe in probes])

    story()
    send_due()
    story()
    owners_verify(app, send_due, smtp)
    for act in ("code", "resend", "cancel"):
        only_shown([probe.submit(f"/account/email/{act}", on="/account/email", code="1234567") for probe in probes])
        send_due()
        only_shown([probe.open("/account/email") for probe in probes])
    only([ask_for(probe, password=WRONG_PASSWORD) for probe in probes])


def ask_for(probe: Probe, password: str = PASSWORD) -> Seen:
    return probe.submit("/account/email", on="/account/email", email=probe.address, password=password)


def test_a_wrong_code_tells_no_address_from_another(probes: list[Probe], send_due: Send) -> None:
    for probe in probes:
        probe.sign_up()
    only([wrong_code(probe) for probe in probes])
    send_due()
    seen = only([wrong_code(probe) for probe in probes])
    assert seen.status == 422
    assert "That code is wrong or has expired" in seen.body


def wrong_code(probe: Probe) -> Seen:
    # More digits than a code has.
    return probe.submit("/signup/code", on="/signup/sent", code="1234567")


@pytest.mark.parametrize("by", ["address", "owner"])
def test_a_locked_account_is_a_wrong_password(probes: list[Probe], app: Flask, by: str) -> None:
    _new, pending, verified, former = probes
    for probe in probes:
        # Only the first response sets a cookie.
        sign_in(probe, by, WRONG_PASSWORD)
    before = [sign_in(probe, by, WRONG_PASSWORD) for probe in probes]
    with app.app_context():
        for username in OWNERS.values():
            if user := db.session.scalar(select(User).where(User.username == username)):
                actions.lock(user)
    # The right one for each.
    after = [sign_in(pending, by, PASSWORD), sign_in(verified, by, OWNERS_PASSWORD), sign_in(former, by, PASSWORD)]
    seen = only([*before, *after])
    assert (seen.status, seen.hashes, seen.verifications) == (422, 0, 2)


@pytest.mark.parametrize("by", ["address", "owner"])
def test_a_failed_sign_in_tells_nobody_from_another(probes: list[Probe], by: str) -> None:
    seen = only(
        [
            probe.submit("/login", on="/login", identifier=getattr(probe, by), password=WRONG_PASSWORD)
            for probe in probes
        ]
    )
    assert seen.status == 422
    assert "That username, email address, or password is wrong." in seen.body
    assert (seen.hashes, seen.verifications) == (0, 2)


def test_each_sign_in_checks_two_passwords(probes: list[Probe]) -> None:
    """People with an account, a signup, or both."""
    probes[2].sign_up()
    answers = [
        sign_in(probe, by, password)
        for probe in probes
        for by in ("address", "owner")
        for password in (PASSWORD, "another horse battery", WRONG_PASSWORD)
    ]
    assert {answer.verifications for answer in answers} == {2}
    assert {answer.status for answer in answers} == {303, 422}


def test_a_forgotten_password_tells_no_address_from_another(probes: list[Probe], send_due: Send, smtp: Server) -> None:
    for _ in range(3):
        seen = only([probe.submit("/forgot", on="/forgot", email=probe.address) for probe in probes])
        assert seen.status == 303
        assert any(statement.startswith("INSERT INTO outgoing_emails") for statement in seen.statements)
        assert not any("FROM users" in statement for statement in seen.statements)
        assert (seen.hashes, seen.verifications) == (0, 0)
        seen = only([probe.open("/forgot/sent") for probe in probes])
        assert seen.statements == []
        again = only([probe.submit("/forgot", on="/forgot/sent", email=probe.address) for probe in probes])
        assert again.status == 303
        send_due()
        # Whatever became of the emails, the page says the same.
        assert only([probe.open("/forgot/sent") for probe in probes]).body == seen.body
    assert {mail.recipients[0] for mail in smtp.mails} == {KINDS["pending"], KINDS["verified"], KINDS["former"]}


def test_forgetting_too_often_tells_no_address_from_another(probes: list[Probe], app: Flask) -> None:
    app.config["RATELIMIT_RESET"] = parse_many("2/hour")
    for probe in probes[1:]:
        probe.submit("/forgot", on="/forgot", email=probe.address)
    seen = only([probe.submit("/forgot", on="/forgot", email=probe.address) for probe in probes])
    assert seen.status == 429


def test_the_story_stays_the_same_when_somebody_forgets_the_password_meanwhile(
    probes: list[Probe], send_due: Send, smtp: Server
) -> None:
    for probe in probes:
        probe.sign_up()
    send_due()
    smtp.actions["RCPT"] = "550 no such user"
    for probe in probes:
        probe.submit("/forgot", on="/forgot", email=probe.address)
        only_shown([probe.open("/signup/sent") for probe in probes])
    send_due()
    assert "Sent " in only_shown([probe.open("/signup/sent") for probe in probes])[1]


def test_the_waiting_page_tells_the_same_story_of_every_address(probes: list[Probe], send_due: Send) -> None:
    def story() -> tuple[int, str]:
        only([probe.open("/signup/sent/progress") for probe in probes])
        seen = only([probe.open("/signup/sent") for probe in probes])
        assert (seen.hashes, seen.verifications) == (0, 0)
        return seen.status, seen.body

    for probe in probes:
        probe.sign_up()
    assert "Sending in" in story()[1]
    send_due()
    assert "Sent " in story()[1]
    for probe in probes:
        probe.resend()
    assert "Sending…" in story()[1]
    send_due()
    assert "Sent " in story()[1]


@pytest.mark.parametrize("moment", ["before the mail left", "after the mail left", "after a resend"])
def test_the_story_stays_the_same_when_the_owner_verifies_meanwhile(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server, moment: str
) -> None:
    for probe in probes:
        probe.sign_up()
    if moment != "before the mail left":
        send_due()
    if moment == "after a resend":
        for probe in probes:
            probe.resend()
    owners_verify(app, send_due, smtp)
    told = [only_shown([probe.open("/signup/sent") for probe in probes])]
    for act in (wrong_code, Probe.resend):
        told.append(only_shown([act(probe) for probe in probes]))
        told.append(only_shown([probe.open("/signup/sent") for probe in probes]))
        send_due()
        told.append(only_shown([probe.open("/signup/sent") for probe in probes]))
    told.append(only_shown([change_address(probe) for probe in probes]))
    assert not any("Your email address is confirmed" in body for _status, body in told)


@pytest.mark.parametrize("act", ["wrong code", "resend", "change of address"])
def test_what_a_waiting_page_does_stays_the_same_when_the_owner_verifies_meanwhile(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server, act: str
) -> None:
    acts = {"wrong code": wrong_code, "resend": Probe.resend, "change of address": change_address}
    for probe in probes:
        probe.sign_up()
    send_due()
    owners_verify(app, send_due, smtp)
    only([acts[act](probe) for probe in probes])


def test_an_address_may_be_changed_as_often_whether_or_not_its_owner_verified_meanwhile(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server
) -> None:
    for probe in probes:
        probe.sign_up()
    send_due()
    owners_verify(app, send_due, smtp)
    for number in range(signup.CHANGES + 1):
        status, _body = only_shown([change_address(probe, f"elsewhere{number}@example.com") for probe in probes])
    assert status == 422


def owners_verify(app: Flask, send_due: Send, smtp: Server) -> None:
    """Let the owners who have not verified yet sign up and verify."""
    for kind in ("new", "pending"):
        owner = Visitor("http://signup.example", app)
        # The same length as, but different from, the name in the earlier signup.
        owner.sign_up(username=f"{OWNERS[kind]}2", email=KINDS[kind])
        send_due()
        (link,) = {mail.link for mail in smtp.mails[-1:] if mail.recipients == [KINDS[kind]]}
        owner.open(link)
        owner.submit("/verify")
        assert owner.path == "/account"


def change_address(probe: Probe, address: str = "elsewhere@example.com") -> Seen:
    return probe.submit("/signup/email", on="/signup/sent", email=address)


def test_too_many_signups_tell_no_address_from_another(probes: list[Probe], app: Flask) -> None:
    for probe in probes:
        probe.sign_up()
    app.config["RATELIMIT_SIGNUP"] = parse_many("1/hour")
    Visitor("http://signup.example", app).sign_up(email="somebody@example.com")
    for act in (Probe.sign_up, change_address):
        seen = only([act(probe) for probe in probes])
        assert seen.status == 429
        assert seen.hashes == 0


def test_sending_again_too_often_tells_no_address_from_another(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server
) -> None:
    app.config["RATELIMIT_RESEND"] = parse_many("2/hour")
    for probe in probes:
        probe.sign_up()
    send_due()
    only([probe.resend() for probe in probes])
    owners_verify(app, send_due, smtp)
    only([probe.resend() for probe in probes])
    seen = only([probe.resend() for probe in probes])
    assert seen.status == 429


@pytest.mark.parametrize("by", ["address", "owner"])
def test_failing_to_sign_in_too_often_tells_nobody_from_another(probes: list[Probe], app: Flask, by: str) -> None:
    app.config["RATELIMIT_LOGIN_ACCOUNT"] = parse_many("2/hour")
    for _ in range(2):
        only([sign_in(probe, by, WRONG_PASSWORD) for probe in probes])
    # Even with the right password.
    seen = only([sign_in(probe, by, PASSWORD) for probe in probes])
    assert seen.status == 429
    assert (seen.hashes, seen.verifications) == (0, 0)


def sign_in(probe: Probe, by: str, password: str) -> Seen:
    return probe.submit("/login", on="/login", identifier=getattr(probe, by), password=password)


def test_a_mail_over_the_limit_tells_the_same_story_of_every_address(
    probes: list[Probe], app: Flask, send_due: Send
) -> None:
    app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many("1/hour")
    travel(app, 3600)
    for probe in probes:
        probe.sign_up(username=f"{probe.username}1")
    send_due()
    for probe in probes:
        probe.sign_up()
    only_shown([probe.open("/signup/sent") for probe in probes])
    send_due()
    assert "Sent " in only_shown([probe.open("/signup/sent") for probe in probes])[1]


@pytest.mark.parametrize("limits", ["1/hour", "1/minute, 1/day"])
def test_a_mail_that_waits_for_its_address_tells_the_story_of_one_that_does_not(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server, limits: str
) -> None:
    """Over its whole life: two of the addresses got an email just now, the others did not."""
    app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many(limits)

    def story() -> str:
        only([probe.open("/signup/sent/progress") for probe in probes])
        only([wrong_code(probe) for probe in probes])
        return only([probe.open("/signup/sent") for probe in probes]).body

    sent = len(smtp.mails)
    for probe in probes:
        probe.sign_up()
    assert "Sending in" in story()
    send_due()
    assert {mail.recipients[0] for mail in smtp.mails[sent:]} == {KINDS["new"], KINDS["former"]}
    assert "Sent " in story()
    for act in (Probe.resend, Probe.resend):
        only([act(probe) for probe in probes])
        story()
        send_due()
        assert "Sent " in story()
        travel(app, 300)
        assert "Sent 5 minutes ago" in story()
    for hours in (1, 24, 24):
        travel(app, hours * 3600)
        send_due()
        assert re.search(r"Sent (\d+ (minutes|hours|days)|1 (hour|day)) ago", story())
    assert {mail.recipients[0] for mail in smtp.mails[sent:]} == set(KINDS.values())
    only([change_address(probe, probe.address) for probe in probes])
    story()


def test_an_account_whose_mail_waits_for_its_new_address_sees_nothing_of_it(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server
) -> None:
    for probe in probes:
        probe.sign_up(email=f"{probe.username}@example.com")
        send_due()
        probe.visitor.open(smtp.mails[-1].link)
        probe.visitor.submit("/verify")
    app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many("1/hour")
    rival = Visitor("http://signup.example", app)
    rival.sign_up(username="rival", email="rival@example.com")
    send_due()
    rival.open(smtp.mails[-1].link)
    rival.submit("/verify")
    for kind in ("pending", "verified"):
        rival.open("/account/email")
        rival.submit("/account/email", email=KINDS[kind], password=PASSWORD)
        send_due()
    only([ask_for(probe) for probe in probes])
    for seconds in (0, 300, 3600, 86400):
        send_due()
        travel(app, seconds)
        assert "Sent " in only([probe.open("/account/email") for probe in probes]).body
        only([probe.submit("/account/email/resend", on="/account/email") for probe in probes])


@pytest.mark.parametrize("rivals", ["before", "after"])
def test_what_a_signup_can_do_depends_on_no_other_of_its_address(
    probes: list[Probe], app: Flask, send_due: Send, smtp: Server, rivals: str
) -> None:
    """Its own browser finds it by address and name, any other by name, whoever else has the address."""
    own = "the probe's own password"

    def rival() -> None:
        for probe in probes:
            Visitor("http://signup.example", app).sign_up(username=f"{probe.username}2", email=probe.address)

    def story() -> None:
        for by in ("address", "username"):
            assert only([sign_in(probe, by, own) for probe in probes]).status == 303
        others = [elsewhere(probe) for probe in probes]
        assert only([sign_in(other, "address", own) for other in others]).status == 422
        assert only([sign_in(other, "username", own) for other in others]).status == 303

    if rivals == "before":
        rival()
    for probe in probes:
        probe.sign_up(password=own)
    story()
    if rivals == "after":
        rival()
    story()
    owners_verify(app, send_due, smtp)
    story()


def elsewhere(probe: Probe) -> Probe:
    """Return the same person with another browser."""
    other = copy(probe)
    other.visitor = Visitor("http://signup.example", probe.app)
    return other


@pytest.mark.parametrize(
    "kept", ["cheap", "", "garbage", "$2b$12$R9h/cIPz0gi.URNNX3kh2O", "h\xe4sh", "$argon2id$v=19$m=8"]
)
@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_a_failed_sign_in_takes_as_long_whatever_the_kept_hash_costs(
    probes: list[Probe], app: Flask, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """Least CPU time of alternating attempts: for two hashes whose cost is higher now than when they were stored.

    A noisy neighbor can spoil one comparison; a bug would spoil all of them.
    """
    raised = PasswordHasher(time_cost=2, memory_cost=8192, parallelism=1)
    cheap = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    with app.app_context():
        db.session.execute(update(User).values(password_hash=cheap.hash(PASSWORD) if kept == "cheap" else kept))
        db.session.commit()
    monkeypatch.setattr(passwords, "hasher", lambda: raised)
    compared = []
    for _ in range(8):
        hash_cost._missing.cache_clear()
        compared.append([min(times) for times in failed_sign_ins(probes)])
        if max(compared[-1]) / min(compared[-1]) < 1.3:
            return
    pytest.fail(f"some sign-ins fail sooner than others: {compared}")


def failed_sign_ins(probes: list[Probe]) -> list[list[float]]:
    """Return the seconds that each person's attempts took."""
    took: list[list[float]] = [[] for _ in probes]
    for number in range(8):
        for probe, times in zip(probes, took, strict=True):
            probe.visitor.open("/login")
            fields = {**probe.visitor.hidden("/login"), "identifier": probe.owner, "password": WRONG_PASSWORD}
            begun = time.process_time()
            assert probe.visitor.http.post("/login", data=fields).status_code == 422
            # What is measured or made once per process does not depend on the account.
            if number > 1:
                times.append(time.process_time() - begun)
    return took


@pytest.mark.parametrize("cookie", ["x.y", ".", "0" * 500, f"{'0' * 32}.{'0' * 64}"])
def test_a_browser_that_pretends_to_be_known_tells_nobody_from_another(probes: list[Probe], cookie: str) -> None:
    for probe in probes:
        probe.visitor.http.cookies.set("known", cookie, domain="signup.example")
    for by in ("address", "owner"):
        seen = only([sign_in(probe, by, WRONG_PASSWORD) for probe in probes])
        assert (seen.status, seen.verifications) == (422, 2)


def test_the_comparison_sees_what_differs(probes: list[Probe]) -> None:
    """Otherwise everything above could pass with a comparison that sees nothing."""
    new, pending, *_others = probes
    good, bad = new.sign_up(), pending.sign_up(email="nobody")
    assert good.status != bad.status
    assert good.headers != bad.headers
    assert good.body != bad.body
    assert good.statements != bad.statements
    assert good.hashes != bad.hashes
    with pytest.raises(AssertionError):
        only([good, bad])
    with pytest.raises(AssertionError):
        only_shown([good, bad])


def test_the_comparison_sees_a_sign_in_that_succeeds(probes: list[Probe]) -> None:
    _new, pending, verified, _former = probes
    failed, succeeded = (sign_in(probe, "owner", PASSWORD) for probe in (verified, pending))
    assert failed.verifications == succeeded.verifications
    with pytest.raises(AssertionError):
        only([failed, succeeded])
