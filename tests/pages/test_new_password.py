"""A new password is judged while it is typed, exactly as it will be when the form is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from flask import Flask
from limits import parse_many

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_password_change import forget, on_embedded, owner, reset_link
from webapp.accounts import passwords

Send = Callable[[], None]

__all__ = ["owner"]

MARKS = "a" + "\N{COMBINING GRAVE ACCENT}" * 600

# Common, short, long, and easy to guess only from the person's own words.
REFUSED = ["password", "x7Q", "x" * 129, "mick19mick", "Acme2026", "qwertyuiop", "vorgelzat99"]
TYPED: dict[str, Any] = {"username": "mick19", "full_name": "Vorgelzat Mick", "email": "mick@example.com"}


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {**environ, "RATELIMIT_ENABLED": "true", "MAIL_LIMIT_PER_ADDRESS": "none"}


def open_signup(visitor: Visitor, _send_due: Send, _smtp: Server) -> dict[str, str]:
    visitor.open("/signup")
    return TYPED


def open_verify(visitor: Visitor, send_due: Send, smtp: Server) -> dict[str, str]:
    visitor.sign_up(**TYPED)
    send_due()
    visitor.http.cookies.clear()
    visitor.open(smtp.mails[-1].link)
    return {}


def open_reset(visitor: Visitor, send_due: Send, smtp: Server) -> dict[str, str]:
    open_verify(visitor, send_due, smtp)
    visitor.submit("/verify", new_password=PASSWORD)
    visitor.http.cookies.clear()
    forget(visitor)
    send_due()
    visitor.open(reset_link(smtp))
    return {}


def open_account(visitor: Visitor, send_due: Send, smtp: Server) -> dict[str, str]:
    open_verify(visitor, send_due, smtp)
    visitor.submit("/verify", new_password=PASSWORD)
    visitor.open("/account/password")
    return {"password": PASSWORD}


def ask(visitor: Visitor, action: str = "/signup", **fields: Any) -> dict[str, str | int]:
    """Ask like the page does while somebody types, and return the response."""
    url = re.search(r'class="meter"[^>]*data-url="([^"]+)"', visitor.page.text)
    assert url, "no meter on this page"
    answer = visitor.http.post(unescape(url[1]), data={**visitor.hidden(action), **fields})
    assert answer.headers["cache-control"] == "no-store"
    said: dict[str, str | int] = answer.json()
    return said


@on_embedded
@pytest.mark.parametrize(
    ("way", "action", "field"),
    [
        (open_signup, "/signup", "password"),
        (open_verify, "/verify", "new_password"),
        (open_reset, "/reset", "password"),
        (open_account, "/account/password", "new_password"),
    ],
)
def test_the_meter_says_what_the_form_says(
    visitor: Visitor,
    send_due: Send,
    smtp: Server,
    way: Callable[[Visitor, Send, Server], dict[str, str]],
    action: str,
    field: str,
) -> None:
    typed: dict[str, Any] = way(visitor, send_due, smtp)
    for password in REFUSED:
        said = ask(visitor, action, **{**typed, field: password})
        visitor.submit(action, **{**typed, field: password})
        assert visitor.page.status_code == 422, password
        told = re.search(rf'id="{field}-error"[^>]*>([^<]+)<', visitor.page.text)
        assert told, password
        assert said == {"level": 1, "text": unescape(told[1])}
    assert ask(visitor, action, **{**typed, field: "qzvkmfwtrplg-81"}) == {"level": 4, "text": "Very good"}
    assert visitor.submit(action, **{**typed, field: "qzvkmfwtrplg-81"}).status_code == 200


@on_embedded
@pytest.mark.thai
def test_it_speaks_the_language_of_its_page(visitor: Visitor) -> None:
    visitor.open("/signup?language=th")
    said = str(ask(visitor, password="password")["text"])
    visitor.submit("/signup", **{**TYPED, "password": "password"})
    assert re.search("[ก-๙]", said)
    assert said in unescape(visitor.page.text)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were scored."""
    seen: list[str] = []
    strength = passwords.strength

    def noting(password: str, words: list[str]) -> passwords.Strength:
        seen.append(password)
        return strength(password, words)

    monkeypatch.setattr(passwords, "strength", noting)
    return seen


@on_embedded
@pytest.mark.parametrize(
    ("fields", "status"),
    [({"csrf_token": ""}, 400), ({"username": MARKS}, 422), ({"password": MARKS}, 200), ({"password": "short"}, 200)],
)
def test_nothing_is_judged_without_its_token_or_too_long(
    visitor: Visitor, judged: list[str], fields: dict[str, str], status: int
) -> None:
    visitor.open("/signup")
    sent = {**visitor.hidden("/signup"), "password": PASSWORD, **fields}
    answer = visitor.http.post("/signup/strength", data=sent)
    assert answer.status_code == status
    assert judged == []
    assert ("text" in answer.json()) == (status == 200)


def test_over_its_limit_nothing_is_judged_and_forms_work_as_ever(
    app: Flask, visitor: Visitor, judged: list[str]
) -> None:
    app.config["RATELIMIT_STRENGTH"] = parse_many("2/hour")
    app.config["RATELIMIT_POST"] = parse_many("1/hour")
    visitor.open("/signup")
    form = {**visitor.hidden("/signup"), "password": "password"}
    assert [visitor.http.post("/signup/strength", data=form).status_code for _ in range(4)] == [200, 200, 429, 429]
    assert len(judged) == 2
    visitor.sign_up()
    assert visitor.path == "/signup/sent"


@on_embedded
@pytest.mark.usefixtures("owner")
def test_nothing_of_it_is_logged_and_nothing_told_of_accounts(
    visitor: Visitor, another_visitor: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    another_visitor.open("/signup")
    ours, nobodys = (
        ask(another_visitor, username=name, email=f"{name}@example.com", password="gorvik-umbelzat-71")
        for name in ("mick19", "nobody")
    )
    assert ours == nobodys
    # Answers are not logged, errors are.
    assert another_visitor.http.post("/signup/strength", data={"password": "gorvik-umbelzat-71"}).status_code == 400
    assert caplog.text.count("/signup/strength") == 1
    assert "umbelzat" not in caplog.text
    visitor.http.cookies.clear()
    for path in ("/reset/strength", "/verify/strength", "/account/password/strength"):
        visitor.open("/login")
        answer = visitor.http.post(path, data={**visitor.hidden("/login"), "password": PASSWORD})
        assert "json" not in answer.headers["content-type"], path
