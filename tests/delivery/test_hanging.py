"""Recipients whose mail server does not answer: only their own emails wait."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime

import pytest
from flask import Flask

from harness.processes import consumer, wait_until
from harness.smtp_server import Action, Connection, Server, hang
from tests.factories import attempts, deliver, get, make_signup
from tests.system.test_journey import Environ
from webapp.delivery import tasks, throughput, worker
from webapp.delivery.throughput import MANY_ASIDE, Patience
from webapp.extensions import mail


def for_some(action: Action) -> Action:
    """Act only on recipients whose address begins with "hang"."""

    def act(connection: Connection) -> str | bytes | None:
        if not connection.recipients[-1].startswith("hang"):
            return None
        return action(connection) if callable(action) else action

    return act


def sign_up(app: Flask, prefix: str, count: int) -> list[uuid.UUID]:
    ids = [make_signup(app, username=f"{prefix}{n}", address=f"{prefix}{n}@example.com") for n in range(count)]
    with app.app_context():
        for email_id in ids:
            tasks.deliver_later(email_id)
    return ids


@contextmanager
def a_consumer(environ: Environ, workers: int) -> Iterator[None]:
    with consumer(environ | {"MAIL_TIMEOUT": "100", "LOG_FORMAT": "json"}, workers) as worker:
        worker.wait_for_event("worker_started")
        yield


@pytest.mark.parametrize("step", ["RCPT", "DATA"])
@pytest.mark.parametrize("workers", [1, 4])
def test_others_go_while_the_server_hangs_for_one(
    app: Flask, process_environ: Environ, smtp: Server, step: str, workers: int
) -> None:
    smtp.actions[step] = for_some(hang)
    (hanging,) = sign_up(app, "hang", 1)
    good = sign_up(app, "good", 5)
    with a_consumer(process_environ, workers):
        wait_until(lambda: all(get(app, email_id).status == "sent" for email_id in good), "they waited", seconds=40)
        late = sign_up(app, "late", 1)
        smtp.wait_for("late0@example.com", seconds=40)
        wait_until(lambda: get(app, late[0]).status == "sent", "it waited")
    assert (get(app, hanging).attempts, smtp.to("hang0@example.com")) == (0, [])


@pytest.mark.parametrize("workers", [1, 4])
def test_those_who_come_later_do_not_wait_for_thirty_for_whom_it_hangs(
    app: Flask, process_environ: Environ, smtp: Server, workers: int
) -> None:
    smtp.actions["RCPT"] = for_some(hang)
    hanging = sign_up(app, "hang", 30)
    with a_consumer(process_environ, workers):
        wait_until(lambda: smtp.connections, "nobody began")
        good = sign_up(app, "good", 3)
        for n in range(3):
            # All thirty would take half an hour.
            smtp.wait_for(f"good{n}@example.com", seconds=40)
        # And not because the others were given up.
        untried = sum(attempts(app, email_id) == [] for email_id in hanging)
        assert untried > 0 or workers > 1
        wait_until(lambda: {get(app, email_id).status for email_id in good} == {"sent"}, "one was not written down")
    assert {get(app, email_id).attempts for email_id in hanging} == {0}


def test_the_lease_of_a_mail_past_its_dot_is_renewed_and_it_is_not_put_aside(app: Flask, smtp: Server) -> None:
    email_id, other = make_signup(app), make_signup(app, username="ann", address="ann@example.com")
    leases: list[datetime] = []

    def think(connection: Connection) -> None:
        for _ in range(3):
            leases.extend(filter(None, [get(app, email_id).lease_until]))
            connection.server.stopping.wait(1)

    smtp.actions["dot"] = think
    deliver(app, email_id)
    assert leases == sorted(leases)
    assert leases[-1] != leases[0]
    assert (get(app, email_id).status, get(app, other).status) == ("sent", "queued")


def test_an_attempt_lasts_as_long_as_its_answer_takes(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    email_id = make_signup(app)
    # Meanwhile the lease is renewed each second.
    smtp.actions["dot"] = lambda connection: "421 stopping" if connection.server.stopping.wait(2.5) else None
    deliver(app, email_id)
    (attempt,) = attempts(app, email_id)
    assert (attempt.finished_at - attempt.started_at).total_seconds() >= 2.4
    (told,) = re.findall(r"'duration': ([\d.]+)", caplog.text)
    assert float(told) >= 2.4


def test_the_rest_of_a_batch_is_given_back_and_somebody_is_told(app: Flask, smtp: Server) -> None:
    mail.timeout = 4
    throughput.batch_size.note(1, 0.01)
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(3)]
    told: list[uuid.UUID] = []
    smtp.actions["RCPT"] = lambda connection: hang(connection) if "mick0@" in connection.recipients[-1] else None
    heard: list[list[str]] = []

    def wake(email_id: uuid.UUID) -> None:
        told.append(email_id)
        heard.append([get(app, one).status for one in ids])

    with app.app_context():
        worker.deliver_due(1000, wake)
    assert told == [ids[1]]
    assert heard == [["sending", "queued", "queued"]]
    assert [get(app, email_id).status for email_id in ids] == ["queued", "sent", "sent"]


def test_one_of_several_workers_hears_a_slow_server_out(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = Patience()
    assert not patience.is_over(1)
    with patience.sending():
        pass
    assert patience.is_over(1)
    with patience.sending(), ThreadPoolExecutor(1) as another:
        assert patience.may_wait_on(is_only=False)
        assert not patience.is_over(10)
        assert another.submit(patience.is_over, 1).result()
        assert not another.submit(patience.may_wait_on, is_only=False).result()
        # The answer that it waited for counts for all.
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 3)
    assert not patience.is_over(10)
    assert patience.is_over(13)
    # A lone worker does so once it has put many aside.
    assert [patience.may_wait_on(is_only=True) for _ in range(MANY_ASIDE + 1)] == [False] * MANY_ASIDE + [True]


@contextmanager
def impatience() -> Iterator[None]:
    """Send one email at a time, and wait for none much longer than for the last one."""
    throughput.patience.usual = 0.01
    throughput.batch_size.note(1, 10)
    # Another worker of this process is already waiting one out.
    throughput.patience.waits_on = 0
    try:
        yield
    finally:
        throughput.patience.waits_on = None


def test_after_one_that_hangs_the_newest_all_go_before_another_that_hangs(app: Flask, smtp: Server) -> None:
    tried: list[str] = []

    def note(connection: Connection) -> None:
        tried.append(connection.recipients[-1].partition("@")[0])
        if tried[-1].startswith("hang"):
            hang(connection)

    smtp.actions["RCPT"] = note
    for name in ("hang0", "hang1", "hang2", "good0", "good1", "good2"):
        make_signup(app, username=name, address=f"{name}@example.com")
    with impatience(), app.app_context():
        worker.deliver_due(6)
    assert tried[:5] == ["hang0", "good2", "good1", "good0", "hang2"]


def test_a_mail_that_was_put_aside_has_spent_no_attempt(app: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = for_some(hang)
    hanging = make_signup(app, username="hang0", address="hang0@example.com")
    good = make_signup(app, username="good", address="good@example.com")
    with impatience(), app.app_context():
        assert len(worker.deliver_due(2)) == 2
    row = get(app, hanging)
    assert (row.status, row.attempts, row.last_error_class) == ("queued", 0, "Slow")
    assert [attempt.outcome for attempt in attempts(app, hanging)] == ["returned"]
    assert get(app, good).status == "sent"
