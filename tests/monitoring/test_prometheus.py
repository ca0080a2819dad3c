"""What Prometheus scrapes."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from flask import Flask
from sqlalchemy import delete, select

from harness.processes import wait_until
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.cli.test_cli import flask_mail, refused
from tests.conftest import Backend, installed
from tests.factories import change, claim, make_signup, travel, work
from tests.system.test_journey import website_and_log
from webapp import counters, create_app
from webapp.config import SETTINGS
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery.batch import Batch
from webapp.monitoring import timeseries
from webapp.outbox import outcomes
from webapp.outbox.claims import LeaseLost
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.paths import ROOT
from webapp.version import RELEASE


def read(app: Flask) -> dict[str, float]:
    answer = app.test_client().get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def overdue(app: Flask, email_id: uuid.UUID) -> None:
    """Make the relay hint it at once."""
    change(app, email_id, next_attempt_at=db_now(-5))


def test_metrics_tell_what_rows_tell(app: Flask, visitor: Visitor, smtp: Server) -> None:
    before = read(app)
    assert before['signup_delivery_attempts_total{outcome="sent"}'] == 0
    assert before["signup_workers_alive"] == 0
    refused(app, smtp)
    visitor.sign_up(username="ann", email="ann@example.com")
    overdue(app, make_signup(app, username="bob", address="bob@example.com"))
    work(app)
    after = read(app)
    assert after['signup_mails{state="dead"}'] == 1
    assert after['signup_mails{state="queued"}'] == 1
    assert after['signup_mails{state="sent"}'] == 1
    assert after["signup_mails_due"] == 0
    assert after['signup_delivery_attempts_total{outcome="failed"}'] == 1
    assert after['signup_delivery_attempts_total{outcome="sent"}'] == 1
    assert after["signup_signups_total"] == 3
    assert after["signup_workers_alive"] == 1
    assert after["signup_mail_server_up"] == 1
    assert after["signup_broker_up"] == 1
    assert after["signup_time_to_accept_seconds_count"] == 1
    assert 0 < after["signup_time_to_accept_seconds_sum"] < 60
    buckets = [value for name, value in after.items() if name.startswith("signup_time_to_accept_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1


def test_the_oldest_due_mail_has_its_age(app: Flask) -> None:
    change(app, make_signup(app), next_attempt_at=db_now(-90))
    assert 90 <= read(app)["signup_oldest_due_age_seconds"] < 120


def test_no_counter_goes_down_when_rows_are_pruned(app: Flask, smtp: Server) -> None:
    refused(app, smtp)
    overdue(app, make_signup(app, username="bob", address="bob@example.com"))
    work(app)
    before = read(app)
    travel(app, 91 * 86400)
    assert flask_mail(app, "prune", "--yes").exit_code == 0
    after = read(app)
    assert after['signup_mails{state="sent"}'] == 0
    counters = [name for name in before if re.search(r"_total|_bucket|_count", name)]
    # Scraping counts as requests.
    assert [name for name in counters if "_http_" in name and after[name] < before[name]] == []
    names = [name for name in counters if "_http_" not in name]
    assert len(names) > 20
    assert {name: after[name] for name in names} == {name: before[name] for name in names}
    total = "signup_time_to_accept_seconds_sum"
    assert after[total] == pytest.approx(before[total], abs=0.01)
    assert after["signup_signups_total"] == 2


def test_what_leaves_no_row_is_counted_too(app: Flask, backend: Backend) -> None:
    email_id = make_signup(app)
    (email,) = claim(app)
    change(app, email_id, status="queued", lease_token=None, lease_until=None)
    with app.app_context(), pytest.raises(LeaseLost):
        outcomes.settle(email, "250 ok")
    assert read(app)["signup_fenced_writes_total"] == 0
    with app.app_context():
        Batch([email]).send()
    assert read(app)["signup_fenced_writes_total"] == 1
    backend.break_queue(app)
    Visitor("http://signup.example", app).sign_up()
    after = read(app)
    assert after["signup_hint_failures_total"] == 1
    assert after["signup_broker_up"] == 0


def test_two_who_count_at_once_both_count(app: Flask) -> None:
    with app.app_context():
        counters.count(counters.HINT_FAILURES)
        counters.count(counters.HINT_FAILURES)
        assert counters.counted(counters.HINT_FAILURES) == 2
        db.session.execute(delete(counters.Total))
        db.session.commit()


@pytest.mark.parametrize(
    ("headers", "address", "status"),
    [
        ({}, "127.0.0.1", 200),
        ({}, "::1", 200),
        ({}, "203.0.113.9", 403),
        # A proxy on this machine speaks for someone else.
        ({"X-Forwarded-For": "203.0.113.9"}, "127.0.0.1", 403),
        ({"X-Forwarded-For": "127.0.0.1"}, "127.0.0.1", 403),
        ({"Via": "1.1 proxy"}, "127.0.0.1", 403),
        ({"X-Forwarded-Proto": "https"}, "127.0.0.1", 403),
        ({}, "", 403),
    ],
)
@pytest.mark.parametrize("proxies", ["0", "1"])
def test_without_a_token_only_this_machine_itself_is_answered(
    environ: dict[str, str], headers: dict[str, str], address: str, status: int, proxies: str
) -> None:
    with started(environ, TRUSTED_PROXIES=proxies) as app:
        answer = app.test_client().get("/metrics", headers=headers, environ_base={"REMOTE_ADDR": address})
    # A proxy on this machine may not say that it is one.
    assert answer.status_code == (status if proxies == "0" else 403)


@contextmanager
def started(environ: dict[str, str], **settings: str) -> Iterator[Flask]:
    app = create_app({**environ, **settings})
    yield app
    with app.app_context():
        db.engine.dispose()


def test_with_a_token_whoever_has_it_is_answered(environ: dict[str, str]) -> None:
    token = "0123456789abcdef-metrics"  # noqa: S105 - a test's own
    far: dict[str, Any] = {"environ_base": {"REMOTE_ADDR": "203.0.113.9"}}
    with started(environ, METRICS_TOKEN=token) as app:
        client = app.test_client()
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}, **far).status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {token}"}, **far).status_code == 200


def test_nothing_about_a_person_is_in_them(app: Flask) -> None:
    make_signup(app)
    text = app.test_client().get("/metrics").text
    assert "mick" not in text
    with app.app_context():
        assert db.session.query(OutgoingEmail).count() == 1


OPERATIONS = ROOT / "docs" / "operations"


def test_alerts_and_dashboard_name_only_metrics_that_there_are(app: Flask) -> None:
    # A request is counted after its response.
    read(app)
    there_are = {name.partition("{")[0] for name in read(app)} | {"signup_worker_heartbeat_timestamp_seconds"}
    for file in ("alerts.yml", "grafana.json"):
        named = set(re.findall(r"\bsignup_[a-z_]+", (OPERATIONS / file).read_text()))
        assert named
        assert named <= there_are
    assert json.loads((OPERATIONS / "grafana.json").read_text())["panels"]


def test_each_alert_has_its_section_in_the_runbook_and_points_to_it() -> None:
    rules = (OPERATIONS / "alerts.yml").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", rules)
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)$", runbook, re.MULTILINE) == alerts
    links = re.findall(r'runbook_url: "{{ \$externalLabels.docs }}/runbook.md#(\w+)"', rules)
    assert links == [alert.lower() for alert in alerts]
    for section in runbook.split("\n## ")[1:]:
        for part in ("**Means:**", "**See:**", "**Type:**", "**Over when:**"):
            assert part in section, section.partition("\n")[0]


def test_the_runbook_names_only_commands_and_settings_that_there_are(app: Flask) -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8") + (ROOT / "docs" / "mail-providers.md").read_text(
        "utf-8"
    )
    for command in set(re.findall(r"flask mail (\w+)", runbook)):
        assert app.test_cli_runner().invoke(args=["mail", command, "--help"]).exit_code == 0, command
    settings = set(re.findall(r"\b(?:MAIL|RATELIMIT)_[A-Z_]+[A-Z]\b", runbook))
    assert {name.removesuffix("_FILE") for name in settings} - {"MAIL_TO"} <= set(SETTINGS)


@pytest.mark.parametrize("at_once", [1, 100])
def test_a_row_is_counted_once_whenever_it_is_counted(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(counters, "FOLD_ROWS", at_once)
    refused(app, smtp)
    overdue(app, make_signup(app, username="bob", address="bob@example.com"))
    work(app)
    before = read(app)
    travel(app, counters.SETTLED_SECONDS + counters.FOLD_SECONDS + 1)
    for _ in range(2):
        with app.app_context():
            while counters.fold():
                pass
            kept = sum(db.session.scalars(select(counters.Total.value).where(counters.Total.name == "attempts")))
            hours = sum(db.session.scalars(select(counters.HourlyTotal.value).filter_by(name="attempts")))
            assert kept == hours == 2
    overdue(app, make_signup(app, username="cat", address="cat@example.com"))
    work(app)
    after = read(app)
    sent = 'signup_delivery_attempts_total{outcome="sent"}'
    assert (before[sent], after[sent]) == (1, 2)
    assert after['signup_mails{state="sent"}'] == 2
    assert after["signup_signups_total"] == 3
    with app.app_context():
        for span in timeseries.SPANS.values():
            parts = timeseries.series(span)
            assert (sum(part.accepted for part in parts), sum(part.refused for part in parts)) == (2, 1)
            assert any(part.median is not None for part in parts)


def test_the_release_is_told(environ: dict[str, str]) -> None:
    app = create_app(environ | {"APP_VERSION": "2.7-rc1"})
    assert read(app)[f'signup_build_info{{version="{RELEASE}",build="2.7-rc1"}}'] == 1
    with app.app_context():
        db.engine.dispose()


def test_the_changelog_tells_of_the_release() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert next(section for section in sections if section != "Unreleased").split()[0] == RELEASE


def test_requests_are_counted_by_endpoint_and_never_by_what_was_typed(process_environ: dict[str, str]) -> None:
    environ = process_environ | {"WEB_CONCURRENCY": "3"}
    with website_and_log(environ) as (url, web):
        for path in ["/signup"] * 30 + ["/nowhere/at/all"] * 3:
            # Each over a new connection, which whichever process is free accepts.
            httpx.get(f"{url}{path}")
        told = [httpx.get(f"{url}/metrics").text for _ in range(5)]
        for text in told:
            assert 'signup_http_requests_total{code="200",endpoint="signup.show",method="GET"} 30.0' in text
            assert 'signup_http_requests_total{code="404",endpoint="",method="GET"} 3.0' in text
            assert 'signup_http_request_duration_seconds_count{endpoint="signup.show",method="GET"} 30.0' in text
            assert "nowhere" not in text
            # Of three processes.
            assert 'signup_database_connections{state="limit"} 30.0' in text
        assert web.stop() == 0
    assert not list(Path(process_environ["TMPDIR"]).glob("signup-metrics-*"))


def test_connections_in_use_are_told_and_those_of_who_ended_are_not(process_environ: dict[str, str]) -> None:
    in_use = re.compile(r'signup_database_connections{state="in_use"} (\d+)')
    limit = re.compile(r'signup_database_connections{state="limit"} (\d+)')
    with website_and_log(process_environ | {"WEB_CONCURRENCY": "2", "DATABASE_POOL_SIZE": "7"}) as (url, web):

        def told(what: re.Pattern[str]) -> int:
            found = what.search(httpx.get(f"{url}/metrics").text)
            return int(found[1]) if found else 0

        wait_until(lambda: told(limit) == 14, "not both processes were told of")
        # The scrape itself uses one, or returned it just before the response was written.
        assert 0 <= told(in_use) <= 2
        killed = psutil.Process(web.popen.pid).children()[0]
        killed.kill()
        folder = Path(process_environ["TMPDIR"])
        of_the_dead = f"signup-metrics-*/gauge_live*_{killed.pid}.db"
        wait_until(lambda: not list(folder.glob(of_the_dead)), "what the dead one used is counted still")
        wait_until(lambda: told(limit) == 14, "the one in its place was not told of, or the dead one is")


def test_a_connection_in_use_is_counted_until_it_is_given_back(app: Flask) -> None:
    def told() -> float:
        return read(app)['signup_database_connections{state="in_use"}']

    resting = told()
    with app.app_context(), db.engine.connect(), db.engine.connect():
        assert told() == resting + 2
    assert told() == resting


def test_what_alerts_say_is_tried_by_prometheus_itself() -> None:
    promtool = installed("promtool")
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=OPERATIONS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    syntax = [promtool, "check", "config", "--syntax-only", "prometheus.yml"]
    assert subprocess.run(syntax, cwd=OPERATIONS, capture_output=True, check=False).returncode == 0


def test_the_dashboard_shows_requests_and_connections() -> None:
    asked = json.dumps(json.loads((OPERATIONS / "grafana.json").read_text("utf-8")))
    for name in ("http_requests_total", "http_request_duration_seconds_bucket", "database_connections"):
        assert f"signup_{name}" in asked
