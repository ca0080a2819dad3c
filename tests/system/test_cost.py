"""Nothing expensive happens before it is bounded: input is measured before it is judged."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from flask import Flask
from limits import parse_many

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from webapp.accounts import passwords
from webapp.accounts.identifiers import email_addresses, usernames

MARKS = "a" + "\N{COMBINING GRAVE ACCENT}\N{COMBINING GRAVE ACCENT BELOW}" * 1000
SIGNS = "4@8({[<369&10|!1$57+%24@8({[<369"


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {**environ, "RATELIMIT_ENABLED": "true"}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was parsed, normalized or scored."""
    seen: list[str] = []

    def note(module: object, name: str) -> None:
        real: Callable[..., object] = getattr(module, name)

        def noting(text: str, *more: object) -> object:
            seen.append(name)
            return real(text, *more)

        monkeypatch.setattr(module, name, noting)

    note(email_addresses, "parse_address")
    note(usernames, "normalize")
    note(passwords, "strength")
    note(passwords, "hash")
    return seen


def test_without_its_token_nothing_of_a_form_is_judged(visitor: Visitor, judged: list[str]) -> None:
    visitor.sign_up(csrf_token="")
    assert visitor.page.status_code == 400
    assert judged == []
    assert 'value="mick@example.com"' in visitor.page.text


@pytest.mark.parametrize("field", ["username", "full_name", "email", "password", "nonce"])
def test_a_field_that_is_too_long_is_told_before_anything_is_judged(
    visitor: Visitor, judged: list[str], field: str
) -> None:
    visitor.sign_up(**{field: MARKS})
    assert visitor.page.status_code == 422
    assert "too long" in visitor.text or "at most" in visitor.text
    assert judged == []


@pytest.mark.parametrize("limit", ["RATELIMIT_POST", "RATELIMIT_SIGNUP"])
def test_once_a_limit_is_spent_nothing_of_a_form_is_judged(
    app: Flask, visitor: Visitor, judged: list[str], limit: str
) -> None:
    app.config[limit] = parse_many("1/hour")
    visitor.sign_up()
    assert visitor.path == "/signup/sent"
    judged.clear()
    visitor.sign_up(email="nobody")
    assert visitor.page.status_code == 429
    assert judged == []


def test_a_password_is_scored_only_once_all_else_is_right(visitor: Visitor, judged: list[str]) -> None:
    visitor.sign_up(email="nobody", password="password")
    assert "easy to guess" not in visitor.text
    assert "strength" not in judged
    visitor.sign_up(password="password")
    assert "easy to guess" in visitor.text


def test_a_link_hashes_no_password_for_a_name_that_does_not_do(
    app: Flask, visitor: Visitor, judged: list[str], smtp: Server, send_due: Callable[[], None]
) -> None:
    visitor.sign_up()
    send_due()
    another = Visitor("http://signup.example", app)
    another.open(smtp.mails[0].link)
    judged.clear()
    another.submit("/verify", username="@", new_password=f"{PASSWORD} {PASSWORD}")
    assert another.page.status_code == 422
    assert "hash" not in judged


def test_every_form_costs_its_network_of_the_limit_of_all(app: Flask, visitor: Visitor) -> None:
    app.config["RATELIMIT_POST"] = parse_many("3/hour")
    for path in ("/login", "/forgot", "/signup"):
        visitor.open(path)
        assert visitor.submit(path).status_code == 422
    visitor.open("/login")
    visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert visitor.page.status_code == 429
    another = Visitor("http://signup.example", app, ip="192.0.2.2")
    another.open("/login")
    assert another.submit("/login", identifier="mick19", password=PASSWORD).status_code == 422


def test_what_is_too_large_for_any_form_is_told_so(visitor: Visitor, judged: list[str]) -> None:
    visitor.sign_up(password=MARKS * 2)
    assert visitor.page.status_code == 413
    assert "Please send less text" in visitor.text
    assert judged == []


def test_the_longest_form_fits(visitor: Visitor) -> None:
    widest = "\N{GOTHIC LETTER AHSA}"
    password = "".join(map(chr, [0x10330 + 7 * n % 26 for n in range(26)])) * 4
    visitor.sign_up(username=widest * 64, full_name=widest * 100, password=password)
    assert visitor.path == "/signup/sent"


@pytest.mark.parametrize("judge", [email_addresses.parse_address, usernames.normalize, passwords.hash])
def test_no_text_of_any_length_is_normalized_by_whoever_asks(app: Flask, judge: Callable[[str], object]) -> None:
    with app.app_context(), pytest.raises(ValueError):  # noqa: PT011 - each its own
        judge(MARKS * 100)


def test_a_password_that_nobody_can_have_matches_none(app: Flask) -> None:
    longest = PASSWORD[0] * passwords.MAX_LENGTH
    with app.app_context():
        kept = passwords.hash(longest)
        assert passwords.verify(kept, longest)
        assert not passwords.verify(kept, longest + PASSWORD[0])


@pytest.mark.parametrize(
    "password",
    [
        SIGNS,
        "[|$05[8(8<49!81[#|7+@{62",
        "4<18/d!45|/@1415{@+70b[9$[9&(639",
        "({[<1!|7" * 4,
        "0123456789" * 3,
        "5709729886127965212",
    ],
)
def test_zxcvbn_reads_no_password_in_more_ways_than_it_has_time_for(password: str) -> None:
    """The first three take a hundred times as long when they are read in all ways."""

    def seconds(judged: str) -> float:
        taken = []
        for _ in range(5):
            before = time.thread_time()
            passwords.weakness(judged, [])
            taken.append(time.thread_time() - before)
        return min(taken)

    assert seconds(password) < 20 * seconds(PASSWORD)


@pytest.mark.parametrize(
    "password", ["p@ssw0rd", "P@$$w0rd", "pa55word1", "l3tm31n!", "m1ck19", "1qaz2wsx", "iloveyou123"]
)
def test_words_in_signs_for_letters_are_refused_as_ever(password: str) -> None:
    assert passwords.weakness(password, ["mick19"])


@pytest.mark.parametrize("password", ["({[<1!|7" * 3, "1234567890 correct horse battery", SIGNS, "Kj8#mP2$vL9x!4@7"])
def test_a_hard_password_of_many_signs_stays_welcome(password: str) -> None:
    assert passwords.weakness(password, ["mick19"]) == []


@pytest.mark.parametrize(("parameters", "status"), [(256, 200), (257, 414)])
def test_a_query_of_very_many_parameters_is_not_read(visitor: Visitor, parameters: int, status: int) -> None:
    assert visitor.http.get(f"/login?{'&'.join(['a=1'] * parameters)}").status_code == status


@pytest.mark.parametrize("header", ["Cookie", "X-Forwarded-For", "Accept-Language"])
def test_a_head_that_is_longer_than_any_browsers_is_not_read(visitor: Visitor, header: str) -> None:
    for length, status in ((8000, 200), (40_000, 431)):
        assert visitor.http.get("/login", headers={header: "a" * length}).status_code == status


@pytest.mark.parametrize(("cookies", "status"), [(200, 200), (201, 431)])
def test_more_cookies_than_any_browser_keeps_are_not_read(visitor: Visitor, cookies: int, status: int) -> None:
    sent = "; ".join(f"c{number}=v" for number in range(cookies))
    assert visitor.http.get("/auth", headers={"Cookie": sent}).status_code == (401 if status == 200 else status)


@pytest.mark.parametrize("action", ["/login", "/language"])
@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
def test_a_form_of_very_many_fields_is_not_read(visitor: Visitor, action: str, kind: str) -> None:
    visitor.open("/login")
    fields = {**visitor.hidden("/login"), **{str(number): "" for number in range(200)}}
    sent = (
        {"data": fields} if kind == "urlencoded" else {"files": {name: (None, text) for name, text in fields.items()}}
    )
    assert visitor.http.post(action, **sent).status_code == 413
