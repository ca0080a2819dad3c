"""Stopping and killing: emails being sent are finished or given back, and none is left leased."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from sqlalchemy import select

from harness.processes import consumer, wait_until, within
from harness.smtp_server import Connection, Server, hang
from harness.visitor import PASSWORD, Visitor
from tests.factories import attempts, get, make_signup
from tests.system.test_journey import Environ, website_and_log
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.delivery import circuit_breaker
from webapp.delivery.heartbeats import WorkerHeartbeat
from webapp.delivery.tasks import deliver_later
from webapp.outbox.outgoing_email import OutgoingEmail


def statuses(app: Flask) -> dict[str, int]:
    with app.app_context():
        found = db.session.scalars(select(OutgoingEmail.status)).all()
    return {status: list(found).count(status) for status in set(found)}


def slowly(connection: Connection) -> None:
    connection.server.stopping.wait(0.1)


@pytest.mark.parametrize("step", ["EHLO", "RCPT", "DATA", "dot"])
def test_a_worker_told_to_stop_while_its_send_hangs_ends_soon_and_gives_the_mail_back(
    app: Flask, process_environ: Environ, smtp: Server, step: str
) -> None:
    hanging = threading.Event()

    def hang_there(connection: Connection) -> None:
        hanging.set()
        hang(connection)

    smtp.actions[step] = hang_there
    email_id = make_signup(app)
    with consumer(process_environ | {"MAIL_TIMEOUT": "60"}) as worker:
        wait_until(hanging.is_set, "the worker did not come so far")
        with within(10):
            assert worker.stop() == 0
    row = get(app, email_id)
    assert (row.status, row.attempts, row.lease_token, row.in_doubt) == ("queued", 0, None, step == "dot")
    assert [attempt.outcome for attempt in attempts(app, email_id)] == ["returned"]
    with app.app_context():
        assert db.session.scalars(select(WorkerHeartbeat)).all() == []
        assert not circuit_breaker.is_open()


def test_a_worker_told_to_stop_after_the_final_dot_waits_for_the_answer(
    app: Flask, process_environ: Environ, smtp: Server
) -> None:
    handed_over = threading.Event()

    def think(connection: Connection) -> None:
        handed_over.set()
        connection.server.stopping.wait(2)

    smtp.actions["dot"] = think
    email_id = make_signup(app)
    with consumer(process_environ | {"MAIL_TIMEOUT": "60"}) as worker:
        assert handed_over.wait(20)
        assert worker.stop() == 0
    assert get(app, email_id).status == "sent"
    assert len(smtp.mails) == 1


def test_stopping_workers_again_and_again_under_load_loses_and_doubles_nothing(
    app: Flask, process_environ: Environ, smtp: Server
) -> None:
    smtp.actions["RCPT"] = slowly
    for n in range(40):
        make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com")
    while len(smtp.mails) < 40:
        with consumer(process_environ) as worker:
            seen = len(smtp.mails)
            wait_until(lambda: len(smtp.mails) >= min(40, seen + 8), "the worker sends nothing", 40)  # noqa: B023
            with within(10):
                assert worker.stop() == 0
        assert "sending" not in statuses(app)
    assert statuses(app) == {"sent": 40}
    assert len({mail.recipients[0] for mail in smtp.mails}) == len(smtp.mails) == 40


def test_workers_killed_again_and_again_lose_nothing_and_double_at_most_what_was_in_hand(
    app: Flask, process_environ: Environ, smtp: Server
) -> None:
    """MAIL_TIMEOUT is short, so that leases end within the test."""
    environ = process_environ | {"MAIL_TIMEOUT": "1"}
    smtp.actions["RCPT"] = slowly
    for n in range(40):
        make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com")
    kills = 0
    for _ in range(3):
        with consumer(environ) as worker:
            seen = len(smtp.mails)
            wait_until(lambda: len(smtp.mails) >= min(40, seen + 6), "the worker sends nothing", 40)  # noqa: B023
            worker.kill()
            kills += 1
    with consumer(environ):
        wait_until(lambda: statuses(app) == {"sent": 40}, "mails are left", 60)
    ids: dict[str, set[str]] = {}
    for mail in smtp.mails:
        ids.setdefault(mail.recipients[0], set()).add(mail.message_id)
    assert len(ids) == 40
    assert all(len(message_ids) == 1 for message_ids in ids.values())
    # Five threads of a consumer send: four workers, and the relay.
    assert len(smtp.mails) - 40 <= 5 * kills


@contextmanager
def people_signing_up(url: str) -> Iterator[list[str]]:
    """Sign people up, one after the other, in two threads; yield the addresses that got a 303."""
    accepted: list[str] = []
    stop = threading.Event()

    def sign_up(thread: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            name = f"mick{thread}x{n}"
            try:
                visitor = Visitor(url)
                visitor.open("/signup")
                fields = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
                if visitor.submit("/signup", follow=False, **fields).status_code == 303:
                    accepted.append(f"{name}@example.com")
            except Exception:  # noqa: BLE001 - the server ends: that nothing is lost by it is what the test checks
                return

    threads = [threading.Thread(target=sign_up, args=[n]) for n in range(2)]
    for thread in threads:
        thread.start()
    yield accepted
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_web_server_that_ends_under_load_has_kept_whom_it_accepted(
    app: Flask, process_environ: Environ, how: signal.Signals
) -> None:
    with website_and_log(process_environ) as (url, web), people_signing_up(url) as accepted:
        wait_until(lambda: len(accepted) > 10, "nobody is accepted")
        with within(10):
            if how is signal.SIGTERM:
                assert web.stop() == 0
            else:
                web.kill()
    with app.app_context():
        users = set(db.session.scalars(select(User.email)))
        promised = set(db.session.scalars(select(OutgoingEmail.to_address)))
    assert set(accepted) <= users
    assert users == promised


# On SQLite another process can block all writers.
@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_a_worker_told_to_stop_while_the_database_is_locked_ends_soon_all_the_same(
    app: Flask, process_environ: Environ
) -> None:
    with consumer(process_environ | {"LOG_FORMAT": "json"}) as worker:
        worker.wait_for_event("worker_started")
        with app.app_context(), db.engine.begin():
            for _ in range(4):
                deliver_later(uuid.uuid4())
            # Until a worker took one and waits for the lock, which it does not report.
            time.sleep(1)
            with within(10):
                worker.stop()
