"""Network addresses: what proxies write, and which addresses count as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from sqlalchemy import select

from harness.visitor import Visitor
from webapp import create_app
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.pages.shared import networks

Make = Callable[..., Flask]


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {**environ, "RATELIMIT_ENABLED": "true", "RATELIMIT_SIGNUP": "2/hour"}


@pytest.fixture
def behind(environ: dict[str, str], cheap_passwords: None) -> Iterator[Make]:
    """Make apps behind this many proxies."""
    apps = []

    def make(proxies: int) -> Flask:
        apps.append(create_app({**environ, "TRUSTED_PROXIES": str(proxies)}))
        return apps[-1]

    yield make
    for app in apps:
        with app.app_context():
            db.engine.dispose()


def sign_up(app: Flask, number: int, *, ip: str = "192.0.2.1", **headers: str) -> int:
    """Return the response's status."""
    visitor = Visitor("http://signup.example", app, ip=ip)
    visitor.http.headers.update({name.replace("_", "-"): text for name, text in headers.items()})
    return visitor.sign_up(username=f"mick{number}", email=f"mick{number}@example.com").status_code


def addresses(app: Flask) -> set[str | None]:
    with app.app_context():
        return set(db.session.scalars(select(AuditEvent.address)))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:51234", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        (" 2001:DB8::1 ", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("203.0.113.7:port", None),
        ("203.0.113.999", None),
        ("[2001:db8::1", None),
        ("<script>", None),
        ("9" * 60, None),
        ("::" * 100_000, None),
        ("1.2.3.4\x00", None),
    ],
)
def test_an_address_is_read_as_proxies_write_it(written: str, meant: str | None) -> None:
    address = networks.read(written)
    assert (str(address) if address else None) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [("203.0.113.9:51234", "203.0.113.9"), ("[2001:db8::1]:443", "2001:db8::1"), ("fe80::1%eth0", "fe80::1")],
)
def test_a_forwarded_address_with_a_port_or_a_zone_is_understood(behind: Make, written: str, meant: str) -> None:
    app = behind(1)
    assert [sign_up(app, n, X_Forwarded_For=f"{written}") for n in range(3)] == [200, 200, 429]
    assert addresses(app) == {meant}
    assert sign_up(app, 3, X_Forwarded_For="203.0.113.8:51234") == 200


@pytest.mark.parametrize("rubbish", ["unknown", "x" * 60, "<script>alert(1)</script>", "", ",", '"', "203.0.113.7, {}"])
def test_a_forwarded_text_that_is_no_address_counts_as_the_peers_own(behind: Make, rubbish: str) -> None:
    app = behind(1)
    assert [sign_up(app, n, ip="192.0.2.1", X_Forwarded_For=rubbish) for n in range(3)] == [200, 200, 429]
    assert addresses(app) == {"192.0.2.1"}
    # People behind another proxy are not counted with these.
    assert sign_up(app, 3, ip="192.0.2.2", X_Forwarded_For=rubbish) == 200


def test_fewer_forwarded_addresses_than_proxies_count_as_the_peers_own(behind: Make) -> None:
    app = behind(2)
    assert sign_up(app, 0, X_Forwarded_For="198.51.100.1") == 200
    assert addresses(app) == {"192.0.2.1"}
    assert sign_up(app, 1, X_Forwarded_For="203.0.113.7:80, 198.51.100.1") == 200
    assert addresses(app) == {"192.0.2.1", "203.0.113.7"}


@pytest.mark.parametrize("scheme", ["javascript", "", "x" * 1000, "http\x00s"])
def test_a_forwarded_scheme_that_is_none_is_not_taken(behind: Make, scheme: str) -> None:
    app = behind(1)
    seen = []
    app.before_request_funcs.setdefault(None, []).insert(0, lambda: seen.append(app.request_class and _scheme()))
    visitor = Visitor("http://signup.example", app)
    visitor.http.headers["X-Forwarded-Proto"] = scheme
    assert visitor.open("/signup").status_code == 200
    assert seen == ["http"]


def _scheme() -> str:
    from flask import request  # noqa: PLC0415

    return request.scheme


def test_who_speaks_through_a_socket_counts_with_all_who_do_and_the_operator_is_told_once(
    behind: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    app = behind(0)
    assert [sign_up(app, n, ip="") for n in range(3)] == [200, 200, 429]
    assert addresses(app) == {None}
    assert capsys.readouterr().err.count("address_unknown") == 1


def test_whoever_has_many_networks_is_counted_by_the_wider_ones_too(behind: Make) -> None:
    app = behind(0)
    # Twice from each /64, four times that from each /56, sixteen times from the /48.
    answers = [sign_up(app, n, ip=f"2001:db8:0:{n // 2:x}::1") for n in range(10)]
    assert answers == [200] * 8 + [429] * 2
    answers = [sign_up(app, 10 + n, ip=f"2001:db8:0:{n + 1:x}00::1") for n in range(26)]
    assert answers == [200] * 24 + [429] * 2
    assert sign_up(app, 99, ip="2001:db8:1::1") == 200


def test_whoever_is_over_the_own_limit_uses_up_nothing_of_the_neighbours(behind: Make) -> None:
    app = behind(0)
    assert [sign_up(app, n, ip="2001:db8:0:1::1") for n in range(12)] == [200] * 2 + [429] * 10
    assert [sign_up(app, 20 + n, ip=f"2001:db8:0:{n + 2}::1") for n in range(6)] == [200] * 6


@pytest.mark.parametrize(
    "disguised", ["::ffff:192.0.2.1", "64:ff9b::c000:201", "2002:c000:201::1", "2001:0:4136:e378:8000:63bf:3fff:fdfe"]
)
def test_an_ipv4_address_is_the_same_one_in_every_disguise(disguised: str) -> None:
    assert networks.of(disguised) == networks.of("192.0.2.1")
