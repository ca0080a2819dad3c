"""Rate limits on requests: how many, whose, and what people see."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address

import pytest
from flask import Flask
from limits import parse_many
from redis import Redis
from sqlalchemy import func, select, update

from harness.processes import free_port, within
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from webapp import create_app
from webapp.accounts.links import VerifyEmail
from webapp.accounts.sessions import UserSession
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now

Send = Callable[[], None]

on_servers = pytest.mark.parametrize("backend", ["servers"], indirect=True)

WRONG = "staple battery horse"


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    """The defaults of a fresh installation, except that the first limit is reached sooner."""
    return {**environ, "RATELIMIT_ENABLED": "true", "RATELIMIT_SIGNUP": "3/hour", "RATELIMIT_RESET": "2/hour"}


@pytest.fixture
def another_app(environ: dict[str, str]) -> Iterator[Callable[..., Flask]]:
    """Make apps like `app`, with other settings."""
    apps = []

    def make(**settings: str) -> Flask:
        apps.append(create_app({**environ, **settings}))
        return apps[-1]

    yield make
    for app in apps:
        with app.app_context():
            db.engine.dispose()


def come(app: Flask, ip: str = "192.0.2.1") -> Visitor:
    return Visitor("http://signup.example", app, ip=ip)


def sign_up(app: Flask, number: int, ip: str = "192.0.2.1") -> Visitor:
    visitor = come(app, ip)
    visitor.sign_up(username=f"mick{number}", email=f"mick{number}@example.com")
    return visitor


def sign_in(visitor: Visitor, identifier: str, password: str = WRONG) -> int:
    visitor.open("/login")
    return visitor.submit("/login", follow=False, identifier=identifier, password=password).status_code


def count(app: Flask, model: type) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(model)) or 0


def test_thirty_signups_an_hour_are_enough_for_a_classroom(another_app: Callable[..., Flask]) -> None:
    app = another_app(RATELIMIT_SIGNUP="")
    for number in range(30):
        assert sign_up(app, number).path == "/signup/sent"
    assert sign_up(app, 30).page.status_code == 429


def test_over_the_limit_one_reads_when_to_come_back_and_nothing_is_written(app: Flask) -> None:
    for number in range(3):
        assert sign_up(app, number).path == "/signup/sent"
    visitor = sign_up(app, 3)
    assert visitor.page.status_code == 429
    assert 3000 <= int(visitor.page.headers["retry-after"]) <= 3600
    assert re.search(r"Please try again in (5\d|60) minutes\.", visitor.text)
    assert count(app, User) == 3
    assert visitor.page.headers["cache-control"] == "no-store"


def test_what_is_wrong_with_a_form_is_told_before_it_counts(app: Flask) -> None:
    for _ in range(5):
        assert come(app).sign_up(email="nobody").status_code == 422
    assert sign_up(app, 1).path == "/signup/sent"


def test_another_address_of_the_internet_has_a_budget_of_its_own(app: Flask) -> None:
    for number in range(4):
        sign_up(app, number)
    assert sign_up(app, 4, "192.0.2.2").path == "/signup/sent"


def test_all_addresses_of_one_ipv6_network_count_as_one(app: Flask) -> None:
    network = int(IPv6Address("2001:db8:0:1::"))
    for number in range(3):
        assert sign_up(app, number, str(IPv6Address(network + 7**number))).path == "/signup/sent"
    assert sign_up(app, 3, str(IPv6Address(network + 2**64 - 1))).page.status_code == 429
    assert sign_up(app, 4, "2001:db8:0:2::1").path == "/signup/sent"


def test_an_ipv4_address_is_the_same_one_when_it_comes_by_ipv6(app: Flask) -> None:
    for number in range(3):
        sign_up(app, number)
    assert sign_up(app, 3, "::ffff:192.0.2.1").page.status_code == 429
    assert sign_up(app, 4, "::ffff:192.0.2.2").path == "/signup/sent"


@pytest.mark.parametrize(("proxies", "status"), [("0", 429), ("1", 200)])
def test_a_forwarded_address_counts_only_from_a_trusted_proxy(
    another_app: Callable[..., Flask], proxies: str, status: int
) -> None:
    app = another_app(TRUSTED_PROXIES=proxies)
    for number in range(4):
        visitor = come(app)
        visitor.http.headers["X-Forwarded-For"] = f"198.51.100.{number}"
        visitor.sign_up(username=f"mick{number}", email=f"mick{number}@example.com")
    assert visitor.page.status_code == status


def test_a_forgotten_password_has_a_limit_of_its_own(app: Flask) -> None:
    visitor = sign_up(app, 1)
    for address, status in (("mick1@example.com", 200), ("nobody@example.com", 200), ("mick1@example.com", 429)):
        visitor.open("/forgot")
        visitor.submit("/forgot", email=address)
        assert visitor.page.status_code == status
    assert 3000 <= int(visitor.page.headers["retry-after"]) <= 3600
    assert sign_up(app, 2).path == "/signup/sent"


def test_a_changed_address_counts_as_a_signup(app: Flask) -> None:
    visitor = sign_up(app, 1)
    for number in range(2):
        visitor.submit("/signup/email", email=f"other{number}@example.com")
        assert visitor.path == "/signup/sent"
    visitor.submit("/signup/email", email="third@example.com")
    assert visitor.page.status_code == 429
    visitor.open("/signup/sent")
    assert "other1@example.com" in visitor.text


def test_a_link_is_sent_again_ten_times_an_hour(app: Flask, send_due: Send) -> None:
    visitor = sign_up(app, 1)
    other = sign_up(app, 2)
    send_due()
    for person, times, status in ((visitor, 10, 200), (visitor, 1, 429), (other, 1, 200)):
        for _ in range(times):
            person.open("/signup/sent")
            person.page = person.http.post("/signup/resend", data=person.hidden("/signup/code"))
            assert person.page.status_code == status


def test_failed_sign_ins_are_counted_by_what_was_typed_wherever_they_come_from(app: Flask) -> None:
    for number in range(10):
        assert sign_in(come(app, f"192.0.2.{number}"), "Mick@Example.com") == 422
    late = come(app, "198.51.100.1")
    assert sign_in(late, " mick@example.COM") == 429
    assert re.search(r"Please try again in 1[0-5] minutes\.", late.text)
    assert count(app, AuditEvent) == 10
    assert sign_in(late, "somebody-else") == 422


def test_failed_sign_ins_are_counted_by_where_they_come_from(another_app: Callable[..., Flask]) -> None:
    app = another_app(RATELIMIT_LOGIN_IP="5/hour")
    for number in range(5):
        assert sign_in(come(app), f"mick{number}") == 422
    assert sign_in(come(app), "mick6") == 429
    assert sign_in(come(app, "192.0.2.2"), "mick6") == 422


@pytest.mark.usefixtures("member")
def test_sign_ins_that_succeed_count_for_nothing(app: Flask) -> None:
    for limit in ("RATELIMIT_LOGIN_IP", "RATELIMIT_LOGIN_ACCOUNT"):
        app.config[limit] = parse_many("2/hour")
    for _ in range(4):
        assert sign_in(come(app), "mick19", PASSWORD) == 303


def test_sign_ins_that_lead_on_to_ones_signup_count_for_their_name_alone(another_app: Callable[..., Flask]) -> None:
    app = another_app(RATELIMIT_LOGIN_IP="2/hour", RATELIMIT_LOGIN_ACCOUNT="3/hour")
    visitor = sign_up(app, 1)
    assert [sign_in(visitor, "mick1", PASSWORD) for _ in range(4)] == [303, 303, 303, 429]
    assert sign_in(visitor, "mick2") == 422


@pytest.mark.parametrize("known", ["new@example.com", "mick1@example.com"])
def test_too_many_sign_ins_look_the_same_whether_or_not_there_is_an_account(app: Flask, known: str) -> None:
    sign_up(app, 1)
    visitor = come(app)
    for _ in range(10):
        sign_in(visitor, known)
    # The right password too: otherwise the limit would reveal which one it is.
    assert sign_in(visitor, known, PASSWORD) == 429
    assert "Too many attempts" in visitor.text


@on_servers
def test_web_servers_count_together(app: Flask, another_app: Callable[..., Flask]) -> None:
    another = another_app()
    for number in range(3):
        sign_up((app, another)[number % 2], number)
    assert sign_up(app, 3).page.status_code == 429
    assert sign_up(another, 4).page.status_code == 429


@on_servers
def test_redis_learns_nothing_that_people_typed(app: Flask, environ: dict[str, str]) -> None:
    sign_in(come(app), "mick@example.com")
    with Redis.from_url(environ["REDIS_URL"]) as redis:
        keys = redis.keys("*")
    assert keys
    assert not [key for key in keys if b"mick" in key]


@on_servers
def test_without_redis_nobody_is_turned_away_and_the_operator_is_told(
    another_app: Callable[..., Flask], capsys: pytest.CaptureFixture[str]
) -> None:
    app = another_app(REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    with within(10):
        for number in range(5):
            assert sign_up(app, number).path == "/signup/sent"
        assert sign_in(come(app), "mick1") == 422
    told = capsys.readouterr().err
    assert told.count("broker_down") == 1
    # Once for each limit, however many requests there are.
    assert told.count("limit_not_checked") == 4


def test_one_switch_turns_all_limits_off(another_app: Callable[..., Flask]) -> None:
    app = another_app(RATELIMIT_ENABLED="false")
    for number in range(5):
        assert sign_up(app, number).path == "/signup/sent"
    assert app.config["MAIL_LIMIT_PER_ADDRESS"] == app.config["MAIL_LIMIT_TOTAL"] == []


def test_wrong_passwords_of_a_session_are_counted_wherever_they_are_asked(app: Flask, member: Visitor) -> None:
    app.config["RATELIMIT_LOGIN_KNOWN"] = parse_many("2/hour")
    for password, status in ((WRONG, 422), (WRONG, 422), (PASSWORD, 429)):
        member.open("/account/email")
        member.submit("/account/email", email="new@example.com", password=password)
        assert member.page.status_code == status
    member.open("/account/delete")
    member.submit("/account/delete", password=PASSWORD)
    assert member.page.status_code == 429


def test_guesses_at_once_are_not_more_than_one_by_one(app: Flask) -> None:
    app.config["RATELIMIT_LOGIN_ACCOUNT"] = parse_many("3/hour")
    people = [come(app, f"192.0.2.{number}") for number in range(8)]
    with ThreadPoolExecutor(len(people)) as threads:
        answers = list(threads.map(lambda person: sign_in(person, "mick@example.com"), people))
    assert sorted(answers) == [422] * 3 + [429] * 5


def test_wrong_passwords_at_a_link_are_counted_and_a_new_one_can_still_be_set(
    app: Flask, smtp: Server, send_due: Send
) -> None:
    app.config["RATELIMIT_LOGIN_KNOWN"] = parse_many("2/hour")
    sign_up(app, 1)
    send_due()
    finder = come(app, "198.51.100.1")
    for password, status in ((WRONG, 422), (WRONG, 422), (PASSWORD, 429)):
        finder.open(smtp.mails[0].link)
        finder.submit("/verify", password=password)
        assert finder.page.status_code == status
    finder.open(smtp.mails[0].link)
    finder.submit("/verify", new_password=f"{WRONG} {PASSWORD}")
    assert finder.path == "/account"


def test_not_even_who_knows_the_password_signs_in_without_end(app: Flask, member: Visitor) -> None:
    app.config["RATELIMIT_ACCOUNT"] = parse_many("2/hour")
    assert [sign_in(come(app), "mick19", PASSWORD) for _ in range(3)] == [303, 303, 429]
    assert count(app, UserSession) == 3
    # By the other identifier, and from elsewhere, too.
    assert sign_in(come(app, "198.51.100.1"), "mick@example.com", PASSWORD) == 429
    assert sign_in(come(app), "mick19") == 422
    # Changing it has a separate count: sign-ins of others who know it can't keep the owner from ending them.
    password = PASSWORD
    for status in (200, 200, 429):
        member.open("/account/password")
        member.submit("/account/password", password=password, new_password=f"{WRONG} {password}")
        assert member.page.status_code == status
        password = f"{WRONG} {password}"
    member.open("/account/export")
    member.submit("/account/export")
    assert member.page.status_code == 429
    member.open("/account")
    assert member.path == "/account"


def test_nobody_takes_back_without_end_that_a_signup_is_not_theirs(app: Flask, smtp: Server, send_due: Send) -> None:
    app.config["RATELIMIT_RESEND"] = parse_many("1/hour")
    sign_up(app, 1)
    send_due()
    finder = come(app)
    for status in (200, 429):
        finder.open(smtp.mails[0].link)
        finder.submit("/verify", action="disown")
        finder.submit("/verify/undo")
        assert finder.page.status_code == status


def test_a_new_link_is_not_asked_for_without_end(app: Flask, smtp: Server, send_due: Send) -> None:
    app.config["RATELIMIT_RESEND"] = parse_many("1/hour")
    sign_up(app, 1)
    send_due()
    with app.app_context():
        db.session.execute(update(VerifyEmail).values(expires_at=db_now(-1)))
        db.session.commit()
    finder = come(app)
    for status in (200, 429):
        finder.open(smtp.mails[0].link)
        finder.submit("/verify/renew")
        assert finder.page.status_code == status


def test_names_are_not_tried_without_end(app: Flask, member: Visitor) -> None:
    app.config["RATELIMIT_RESEND"] = parse_many("2/hour")
    for number, status in ((1, 200), (2, 200), (3, 429)):
        member.open("/account/profile")
        member.submit("/account/profile", username=f"another{number}", full_name="")
        assert member.page.status_code == status
