"""The queue: what its messages hold, and what happens when it does not answer."""

from __future__ import annotations

import pickle
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from huey.api import Task

from harness import proxies
from harness.smtp_server import Server
from tests.conftest import Backend
from tests.factories import change, get, make_signup
from webapp.db.clock import db_now
from webapp.delivery import relay, tasks, throughput
from webapp.extensions import huey
from webapp.queue.signed_json import SignedJSON
from webapp.queue.storage import DUE_MAX


def queued(app: Flask) -> list[bytes]:
    return list(app.extensions["huey"].storage.enqueued_items())


def scheduled(app: Flask) -> list[bytes]:
    return list(app.extensions["huey"].storage.scheduled_items())


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[dict[str, Any]]:
    found = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [event for event in found if event["event"] == name]


def run_queue(app: Flask) -> None:
    """Do what a worker does with everything in the queue."""
    while task := huey.dequeue():
        huey.execute(task)


def test_a_message_is_readable_json_that_holds_only_the_mails_id(app: Flask) -> None:
    email_id = uuid.uuid4()
    with app.app_context():
        tasks.deliver_later(email_id, delay=10)
    # It wakes nobody up before it is due.
    assert queued(app) == []
    (message,) = scheduled(app)
    body, _, signature = bytes(message).decode().rpartition(".")
    assert f'"kwargs":{{"email_id":"{email_id}"}}' in body
    assert '"name":"webapp.tasks.deliver_email"' in body
    assert len(signature) > 20


def test_a_message_that_we_did_not_sign_is_not_read(app: Flask) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path("/tmp/evil").touch, ())  # noqa: S108 - never called

    mine = SignedJSON(["0123456789abcdef"])
    for message in (pickle.dumps(Evil()), b'{"name":"x"}', b"", SignedJSON(["another key 456789"]).serialize({"a": 1})):
        with pytest.raises(ValueError, match="not signed"):
            mine.deserialize(message)


def test_a_message_signed_with_the_key_before_is_read() -> None:
    message = SignedJSON(["the old key 012345"]).serialize({"a": 1})
    assert SignedJSON(["the old key 012345", "the new key 012345"]).deserialize(message) == {"a": 1}


def test_a_task_runs_in_the_apps_context_and_is_logged(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    email_id = make_signup(app)
    with app.app_context():
        tasks.deliver_later(email_id)
    run_queue(app)
    assert get(app, email_id).status == "sent"
    (enqueued,), (processed,) = events(caplog, "enqueued task"), events(caplog, "processed task")
    assert enqueued["task"] == processed["task"] == "deliver_email"
    assert enqueued["payload"] == processed["payload"] == f'{{"email_id": "{email_id}"}}'


def test_a_failing_task_is_logged_with_task_payload_and_error(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    smtp.actions["RCPT"] = "451 try later"
    email_id = make_signup(app)
    with app.app_context():
        tasks.deliver_later(email_id)
    run_queue(app)
    (failed,) = events(caplog, "process task failed")
    assert failed["level"] == "error"
    assert failed["task"] == "deliver_email"
    assert failed["payload"] == f'{{"email_id": "{email_id}"}}'
    assert "451 try later" in failed["error"]


def test_of_hints_that_are_due_together_each_is_logged_and_few_wake_a_worker(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    throughput.batch_size.note(1, 0.05)
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(5)]
    with app.app_context():
        for email_id in ids:
            tasks.deliver_later(email_id, delay=DELAY)
    enqueue(huey.read_schedule(once_due()))
    assert len(queued(app)) == 1
    run_queue(app)
    assert {get(app, email_id).status for email_id in ids} == {"sent"}
    processed = sorted(event["payload"] for event in events(caplog, "processed task"))
    assert processed == sorted(f'{{"email_id": "{email_id}"}}' for email_id in ids)
    assert scheduled(app) == queued(app) == huey.read_schedule() == []
    # An email that was taken back is hinted like any other.
    change(app, ids[4], status="queued", next_attempt_at=db_now(-5))
    with app.app_context():
        relay.sweep()
    run_queue(app)
    assert get(app, ids[4]).status == "sent"
    assert [mail.recipients for mail in smtp.mails].count(["mick4@example.com"]) == 2


def test_a_hint_is_due_at_the_same_moment_wherever_it_is_read(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    # In each machine's own time zone.
    zones = ("America/New_York", "Asia/Bangkok")
    for written, read in (zones, zones[::-1]):
        monkeypatch.setenv("TZ", written)
        time.tzset()
        with app.app_context():
            tasks.deliver_later(uuid.uuid4(), delay=DELAY)
        monkeypatch.setenv("TZ", read)
        time.tzset()
        assert huey.read_schedule() == []
        assert len(huey.read_schedule(once_due())) == 1
    monkeypatch.undo()
    time.tzset()


def test_of_a_great_many_that_are_due_a_consumer_takes_some_at_a_look(app: Flask) -> None:
    with app.app_context():
        for _ in range(DUE_MAX + 2):
            tasks.deliver_later(uuid.uuid4(), delay=DELAY)
    assert len(huey.read_schedule(once_due())) == 1
    assert len(scheduled(app)) == 2
    assert len(huey.read_schedule(once_due())) == 1
    assert len(scheduled(app)) == 0


# No test takes this long, so nothing falls due while the others are still being written.
DELAY = 3600.0


def once_due() -> datetime:
    """Return when everything with this delay will be due."""
    now: datetime = huey._get_timestamp()
    return now + timedelta(seconds=DELAY + 1)


def enqueue(due: list[Task]) -> None:
    """Do what Huey's scheduler does, once a second, with what it reads."""
    for task in due:
        # It is due by then.
        task.eta = None
        huey.enqueue(task)


def test_an_unreadable_message_harms_no_other(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    app.extensions["huey"].storage.enqueue(b"garbage", 1000)
    with app.app_context():
        tasks.deliver_later(email_id)
    with pytest.raises(ValueError, match="not signed"):
        huey.dequeue()
    run_queue(app)
    assert get(app, email_id).status == "sent"


def test_a_queue_that_fails_costs_a_signup_nothing(
    app: Flask, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.break_queue(app)
    with app.app_context():
        tasks.deliver_later(uuid.uuid4())
    assert "hint_failed" in caplog.text


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_something_else_at_redis_address_costs_a_signup_nothing(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with proxies.listening(lambda connection: connection.sendall(b":abc\r\n" * 100)) as port:
        app.config["REDIS_URL"] = f"redis://127.0.0.1:{port}"
        app.extensions["huey"].init_app(app)
        with app.app_context():
            tasks.deliver_later(uuid.uuid4())
    assert "hint_failed" in caplog.text


def test_the_sweep_sends_what_is_overdue_when_the_queue_fails(app: Flask, backend: Backend, smtp: Server) -> None:
    email_id = make_signup(app)

    change(app, email_id, next_attempt_at=db_now(-5))
    backend.break_queue(app)
    with app.app_context():
        relay.sweep()
    assert get(app, email_id).status == "sent"


def test_the_sweep_hints_what_is_overdue(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)

    change(app, email_id, next_attempt_at=db_now(-5))
    with app.app_context():
        relay.sweep()
        relay.sweep()
    assert len(queued(app)) == 1
    run_queue(app)
    assert len(smtp.mails) == 1


def test_a_mail_that_cannot_be_built_does_not_end_the_relay(app: Flask, backend: Backend, smtp: Server) -> None:
    backend.break_queue(app)
    unsendable = make_signup(app)
    change(app, unsendable, to_address="jürgen@example.com", next_attempt_at=db_now(-10))
    other = make_signup(app, username="ann", address="ann@example.com")
    change(app, other, next_attempt_at=db_now(-5))
    for _ in range(2):
        with app.app_context():
            relay.Relay().turn()
    assert get(app, other).status == "sent"
    assert (get(app, unsendable).status, get(app, unsendable).last_error_class) == ("queued", "Unsendable")
