"""What the logs contain, and what they must not."""

from __future__ import annotations

import json
import logging
import re
import socket
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from flask import Flask

from harness.processes import consumer
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.factories import change, get, make_signup, only_user, work
from tests.system.test_journey import Environ, website_and_log
from webapp.accounts import links
from webapp.db.clock import db_now
from webapp.delivery import tasks
from webapp.logs import ADDRESSES, TOKENS, for_people, leave_out, wants_colors

CONFIRM, PUT_BACK = (f"{links.PATHS[purpose]}/" for purpose in ("change", "revoke"))
TOKEN = "-zK3-0xNotAToken_aB9"  # noqa: S105 - a test's own


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (f"Exception on /verify/{TOKEN} [GET]", "Exception on /verify/<token> [GET]"),
        (f"Exception on /reset/{TOKEN} [GET]", "Exception on /reset/<token> [GET]"),
        (f"Exception on {CONFIRM}{TOKEN} [GET]", f"Exception on {CONFIRM}<token> [GET]"),
        (f"Exception on {PUT_BACK}{TOKEN} [GET]", f"Exception on {PUT_BACK}<token> [GET]"),
        (f"Invalid HTTP request line: 'GET /verify/{TOKEN}'", "Invalid HTTP request line: 'GET /verify/<token>'"),
        ("DETAIL: Key (email)=(dup@example.com) already exists.", "DETAIL: Key (email)=(<address>) already exists."),
        ("to <mick@example.com> and 'ann@example.com'", "to <<address>> and '<address>'"),
        ("(ann@example.com)mick@example.com", "(<address>)<address>"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_tokens_and_addresses_are_left_out_of_every_line(line: str, kept: str) -> None:
    assert leave_out(TOKENS, ADDRESSES)(None, "error", {"event": line, "number": 1}) == {"event": kept, "number": 1}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("line", [f" @{'a' * 500_000}", "@ " * 250_000, "a)" * 250_000 + "@"])
def test_no_line_takes_longer_the_more_often_its_letters_could_begin_an_address(line: str) -> None:
    # Scanning from each letter to the end of the line would take minutes.
    assert leave_out(TOKENS, ADDRESSES)(None, "error", {"event": line}) == {"event": line}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_link_that_ends_in_an_error_leaves_no_token_in_the_log(process_environ: Environ, log_format: str) -> None:
    environ = process_environ | {"LOG_FORMAT": log_format}
    with website_and_log(environ) as (url, web):
        port = int(url.rpartition(":")[2])
        for path in (
            f"/verify/{TOKEN}",
            f"/verify/{TOKEN}\N{LATIN SMALL LETTER E WITH ACUTE}",
            f"/reset/{TOKEN}",
            f"{CONFIRM}{TOKEN}",
        ):
            with socket.create_connection(("localhost", port)) as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
                assert connection.recv(100).startswith(b"HTTP/1.1 4")
        assert TOKEN not in web.log
        if log_format == "json":
            for line in web.log.splitlines():
                assert json.loads(line)["timestamp"]


REQUEST = {
    "event": "request",
    "logger": "webapp.logs",
    "level": "info",
    "timestamp": "2026-11-29T11:00:00Z",
    "method": "GET",
    "rule": "/verify/<token>",
    "status": 303,
    "duration": 0.0124,
    "request_id": "4711",
}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "303 GET /verify/<token> 12 ms"),
        ({"status": 404, "rule": None, "duration": None}, "404 GET (no such page)"),
    ],
)
def test_a_trial_tells_a_request_in_a_few_words(fields: dict[str, Any], line: str) -> None:
    write = for_people(has_colors=False, is_trial=True)
    assert write(None, "info", {**REQUEST, **fields}) == line


def test_all_but_a_trial_tells_all_of_a_request() -> None:
    line = str(for_people(has_colors=False, is_trial=False)(None, "info", {**REQUEST}))
    assert line.startswith("2026-11-29T11:00:00Z [info")
    assert "request_id=4711" in line


@pytest.mark.parametrize(("status", "color"), [(200, "32"), (303, "34"), (404, "33"), (503, "31")])
def test_the_status_of_a_request_has_its_color(status: int, color: str) -> None:
    write = for_people(has_colors=True, is_trial=True)
    assert str(write(None, "info", {**REQUEST, "status": status})).startswith(f"\033[{color}m{status}\033[0m GET")


@pytest.mark.parametrize(
    ("environ", "has_colors"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_what_is_piped_has_no_colors_unless_somebody_passes_it_on(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], *, has_colors: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert wants_colors() == has_colors


def test_a_mail_can_be_followed_from_its_request_to_its_answer(
    visitor: Visitor, app: Flask, send_due: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    visitor.http.headers["X-Request-ID"] = "edge-4711"
    visitor.sign_up()
    assert visitor.page.headers["X-Request-ID"] == "edge-4711"
    send_due()
    (queued,) = lines(caplog, "enqueued task")
    (sent,) = lines(caplog, "email_sent")
    assert queued["request_id"] == sent["request_id"] == "edge-4711"
    assert json.loads(queued["payload"])["email_id"] == sent["email_id"]
    assert (sent["user_id"], sent["attempt"], sent["smtp_code"]) == (only_user(app).id, 1, 250)
    assert 0 < sent["duration"] < 5
    assert "to_address" not in sent
    assert get(app, uuid.UUID(sent["email_id"])).request_id == "edge-4711"


def test_the_id_of_a_mail_is_on_the_lines_of_its_tasks_too(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    smtp.actions["RCPT"] = "451 4.7.1 come back later"
    refused = make_signup(app, due=False)
    with app.app_context():
        tasks.deliver_later(refused)
    change(app, refused, next_attempt_at=db_now(-1))
    work(app)
    smtp.actions.clear()
    sent = make_signup(app, username="bob", address="bob@example.com")
    with app.app_context():
        tasks.deliver_later(sent)
    work(app)
    events = ("enqueued task", "email_deferred", "process task failed", "email_sent", "processed task")
    found = [(event, fields["email_id"]) for event in events for fields in lines(caplog, event)]
    assert found[0] == ("enqueued task", str(refused))
    assert {event for event, email_id in found if email_id == str(refused)} == set(events[:3])
    assert {event for event, email_id in found if email_id == str(sent)} == {events[0], *events[3:]}


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    found = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [fields for fields in found if fields["event"] == event]


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "a\tb", "<b>"])
def test_a_request_id_that_is_none_is_made_anew(visitor: Visitor, given: str) -> None:
    visitor.http.headers = httpx.Headers({"X-Request-ID": given}, encoding="ascii")
    assert re.fullmatch("[0-9a-f]{32}", visitor.open("/livez").headers["X-Request-ID"])


@pytest.mark.parametrize("is_wanted", ["true", "false"])
def test_addresses_are_in_the_log_only_where_a_setting_wants_them(process_environ: Environ, is_wanted: str) -> None:
    environ = process_environ | {"LOG_FORMAT": "json", "LOG_ADDRESSES": is_wanted, "VERIFY_EMAIL_DELAY": "0"}
    with consumer(environ) as worker, website_and_log(environ) as (url, _web):
        Visitor(url).sign_up()
        sent = worker.wait_for_event("email_sent")
        assert sent.get("to_address") == ("mick@example.com" if is_wanted == "true" else None)
        assert ("mick@example.com" in worker.log) == (is_wanted == "true")
        assert "/verify/" not in worker.log


def test_what_machines_ask_all_day_is_logged_when_it_goes_wrong(
    visitor: Visitor, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/livez", "/readyz", "/metrics"):
        assert visitor.open(path).status_code == 200
    assert lines(caplog, "request") == []
    app.config["TRUSTED_PROXIES"] = 1
    assert visitor.open("/metrics").status_code == 403
    assert [line["rule"] for line in lines(caplog, "request")] == ["/metrics"]


def test_a_page_of_ones_own_is_logged_whatever_it_is_called(
    visitor: Visitor, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    app.add_url_rule("/my/progress", "own_progress", lambda: "of one's own")
    caplog.set_level(logging.INFO)
    visitor.open("/my/progress")
    assert [line["rule"] for line in lines(caplog, "request")] == ["/my/progress"]
