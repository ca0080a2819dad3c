"""Host names, https, and pages that programs look for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask, make_response

from harness.visitor import PASSWORD, Visitor
from webapp import create_app
from webapp.db.base import db

Make = Callable[..., Flask]
FIELDS = {"username": "mick19", "full_name": "", "email": "mick@example.com", "password": PASSWORD}


@pytest.fixture
def make(environ: dict[str, str], cheap_passwords: None) -> Iterator[Make]:
    """Make apps with other settings."""
    apps = []

    def make(**settings: str) -> Flask:
        apps.append(create_app({**environ, **settings}))
        return apps[-1]

    yield make
    for app in apps:
        with app.app_context():
            db.engine.dispose()


@pytest.fixture
def trial(make: Make) -> Flask:
    return make(APP_ENV="development", PUBLIC_URL="http://localhost:5000")


@pytest.mark.parametrize(
    "host",
    ["evil.test", "evil.test:5000", "localhost.evil.test", "evil-localhost", "127.0.0.1.nip.io", "", "[::2]:5000"],
)
@pytest.mark.parametrize("path", ["/dev/mailbox", "/signup", "/livez", "/nowhere"])
def test_a_trial_answers_to_no_name_of_elsewhere(trial: Flask, host: str, path: str) -> None:
    answer = trial.test_client().get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert "Please open http://localhost:5000 instead." in answer.text


@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_who_calls_us_what_nobody_can_be_called_is_told_so(make: Make) -> None:
    client = make().test_client()
    for host in ("a..b", ".", "a" * 64, "a." * 4000):
        for path in ("/signup", "/static/app.css", "/livez", "/nowhere"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == 400
            assert "No site can have this name." in answer.text


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (400, {"headers": {"Host": "a..b"}}),
        (414, {"query_string": "&".join(["a=1"] * 300)}),
        (431, {"headers": {"Accept-Language": "a" * 40_000}}),
    ],
)
def test_an_answer_before_the_app_bears_headers_too(make: Make, status: int, asked: dict[str, Any]) -> None:
    answer = make().test_client().get("/login", **asked)
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host", ["localhost:5000", "LOCALHOST:5000", "acme.localhost:5000", "localhost:5001", "localhost"]
)
def test_a_trial_answers_to_the_names_of_this_machine(trial: Flask, host: str) -> None:
    answer = trial.test_client().get("/dev/mailbox", headers={"Host": host}, follow_redirects=False)
    assert answer.status_code == (307 if host.startswith("acme") else 200)


def test_a_trial_answers_to_the_name_of_its_public_url(make: Make) -> None:
    sender = "no-reply@acme.example"
    app = make(APP_ENV="development", PUBLIC_URL="http://192.168.1.5:5000", MAIL_DEFAULT_SENDER=sender)
    assert app.test_client().get("/signup", headers={"Host": "192.168.1.5:5000"}).status_code == 200
    assert app.test_client().get("/signup", headers={"Host": "localhost:5000"}).status_code == 200


def test_in_production_the_proxy_decides_which_names_there_are(visitor: Visitor) -> None:
    visitor.http.headers["Host"] = "other.example"
    assert visitor.open("/signup").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "[::1]:5000"])
def test_a_trial_leads_to_the_one_name_so_that_signup_and_link_share_their_cookies(trial: Flask, host: str) -> None:
    client = trial.test_client()
    answer = client.get("/signup?language=th", headers={"Host": host})
    assert (answer.status_code, answer.location) == (307, "http://localhost:5000/signup?language=th")
    assert client.get("/livez", headers={"Host": host}).status_code == 200
    assert client.get("/metrics", headers={"Host": host}).status_code == 200
    assert client.post("/signup", headers={"Host": host}).status_code == 400


def test_a_trial_on_another_port_leads_nowhere_else(trial: Flask) -> None:
    assert trial.test_client().get("/signup", headers={"Host": "127.0.0.1:5446"}).status_code == 200


@pytest.mark.parametrize(
    ("env", "told"),
    [("development", "This page was opened over http"), ("production", "Please open https://localhost")],
)
def test_a_form_over_http_where_cookies_are_for_https_says_so(
    make: Make, capsys: pytest.CaptureFixture[str], env: str, told: str
) -> None:
    app = make(PUBLIC_URL="https://localhost", APP_ENV=env)
    # httpx does not send a Secure cookie here, like browsers.
    visitor = Visitor("http://localhost", app)
    for _ in range(3):
        visitor.open("/signup")
        assert visitor.submit("/signup", follow=True, **FIELDS).status_code == 400
        assert told in visitor.text
    logged = capsys.readouterr().err
    assert logged.count("cookie_lost") == 1
    assert "TRUSTED_PROXIES" in logged


def test_a_form_over_https_that_is_stale_says_nothing_of_http(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    visitor = Visitor("https://signup.example", make(PUBLIC_URL="https://signup.example"))
    visitor.open("/signup")
    assert visitor.submit("/signup", follow=True, **FIELDS, csrf_token="wrong").status_code == 400
    assert "This page expired" in visitor.text
    assert "cookie_lost" not in capsys.readouterr().err


@pytest.mark.parametrize(("proxies", "times"), [("0", 1), ("1", 0)])
def test_doctor_tells_of_https_without_a_trusted_proxy(make: Make, proxies: str, times: int) -> None:
    app = make(PUBLIC_URL="https://signup.example", TRUSTED_PROXIES=proxies)
    told = app.test_cli_runner().invoke(args=["mail", "doctor"])
    assert told.output.count("TRUSTED_PROXIES") == times


def test_only_who_wants_it_binds_the_subdomains_to_https(make: Make) -> None:
    for setting, header in (("false", "max-age=31536000"), ("true", "max-age=31536000; includeSubDomains")):
        app = make(PUBLIC_URL="https://signup.example", HSTS_INCLUDE_SUBDOMAINS=setting)
        assert app.test_client().get("/").headers["Strict-Transport-Security"] == header


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("http://signup.example", {"shop", "shop-language", "shop-link"}),
        ("https://signup.example", {"__Host-shop", "__Host-shop-language", "__Secure-shop-link"}),
    ],
)
def test_two_apps_on_one_host_share_no_cookie(make: Make, url: str, names: set[str]) -> None:
    app = make(PUBLIC_URL=url, SESSION_COOKIE_NAME="shop")
    visitor = Visitor(url, app)
    visitor.open("/signup?language=en")
    with app.test_request_context():
        from webapp.pages.shared import link_cookie as links  # noqa: PLC0415 - what every link's page does

        kept = links.keep("", "token", "/verify").headers["Set-Cookie"].partition("=")[0]
    assert {*visitor.http.cookies, kept} == names


@pytest.mark.parametrize("url", ["http://signup.example", "https://signup.example"])
def test_the_links_cookie_ends_with_what_it_began_with(make: Make, url: str) -> None:
    """A browser ignores what would delete a `__Secure-` cookie without saying Secure."""
    with make(PUBLIC_URL=url).test_request_context():
        from webapp.pages.shared import link_cookie as links  # noqa: PLC0415 - what every link's page does

        kept, dropped = links.keep("", "token", "/verify"), make_response("")
        links.drop(dropped, "/verify")
    began, ended = (answer.headers["Set-Cookie"].split("; ") for answer in (kept, dropped))
    assert "Max-Age=0" in ended
    assert ended[0] == began[0].removesuffix("token")
    ages = ("Expires=", "Max-Age=")
    assert [part for part in ended[1:] if not part.startswith(ages)] == [
        part for part in began[1:] if not part.startswith(ages)
    ]


def test_whoever_finds_a_hole_reads_where_to_say_so(make: Make) -> None:
    app = make(PUBLIC_URL="https://signup.example", SECURITY_CONTACT="security@signup.example", LANGUAGES="en,th")
    answer = app.test_client().get("/.well-known/security.txt")
    assert answer.content_type == "text/plain; charset=utf-8"
    fields = dict(line.split(": ", 1) for line in answer.text.splitlines())
    assert fields["Contact"] == "mailto:security@signup.example"
    assert fields["Canonical"] == "https://signup.example/.well-known/security.txt"
    assert fields["Preferred-Languages"] == "en, th"
    left = datetime.fromisoformat(fields["Expires"]) - datetime.now(UTC)
    assert timedelta(days=90) < left < timedelta(days=365)


def test_without_a_contact_there_is_no_security_txt(visitor: Visitor) -> None:
    assert visitor.open("/.well-known/security.txt").status_code == 404


def test_password_managers_find_the_page_to_change_the_password(visitor: Visitor, member: Visitor) -> None:
    member.open("/.well-known/change-password")
    assert member.path == "/account/password"
    stranger = Visitor("http://signup.example", visitor.http._transport.app)  # type: ignore[attr-defined]
    stranger.open("/.well-known/change-password")
    assert stranger.path == "/login"
    assert (
        stranger.open("/.well-known/resource-that-should-not-exist-whose-status-code-should-not-be-200").status_code
        == 404
    )
