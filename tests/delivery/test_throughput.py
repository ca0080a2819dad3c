"""Emails sent in a batch: each has its own answer, and none is lost or sent twice because of the others."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from flask import Flask
from limits import parse_many
from sqlalchemy import event, update

from harness.processes import wait_until
from harness.smtp_server import Connection, Server
from tests.factories import attempts, change, claim, get, make_signup, travel
from webapp.accounts.links import VerifyEmail
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import batch, relay, send, tasks, throughput, worker
from webapp.delivery.failures import DeliveryFailed
from webapp.delivery.throughput import BatchSize
from webapp.extensions import huey, mail
from webapp.outbox import leases
from webapp.smtp import client


def make_signups(app: Flask, count: int) -> list[uuid.UUID]:
    return [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(count)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mail server was fast recently, so that a machine busy with other tests does not look slow."""
    throughput.batch_size.note(1, 0.05)
    monkeypatch.setattr(batch, "LONGEST_SECONDS", 60.0)
    monkeypatch.setattr(client, "TELL_SECONDS", 60.0)


def wake(app: Flask, email_id: uuid.UUID) -> None:
    """Do what a worker does with a hint."""
    with app.app_context():
        tasks.deliver_email.call_local(str(email_id))


def deliver(app: Flask) -> None:
    with app.app_context():
        worker.deliver_due(1000)


def test_a_hint_sends_others_that_are_due_over_one_connection(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 5)
    late = make_signup(app, username="ann", address="ann@example.com", due=False)
    wake(app, ids[3])
    assert {get(app, email_id).status for email_id in ids} == {"sent"}
    assert get(app, late).status == "queued"
    assert [len(attempts(app, email_id)) for email_id in ids] == [1] * 5
    assert smtp.connections == 1
    # In the order in which they were due, whichever was hinted.
    assert [mail.recipients[0] for mail in smtp.mails] == [f"mick{n}@example.com" for n in range(5)]


def test_each_is_settled_before_the_next_is_handed_over(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 4)
    unsettled: list[int] = []

    def look(_connection: Connection) -> None:
        unsettled.append(sum(get(app, email_id).status == "sending" for email_id in ids))

    smtp.actions["dot"] = look
    deliver(app)
    assert unsettled == [4, 3, 2, 1]


def heard_behind_dots(smtp: Server) -> list[bool]:
    """Return a list that grows with each email: whether the server read the next one before it answered."""
    heard: list[bool] = []
    smtp.actions["answer"] = lambda connection: heard.append(bool(connection.heard_already()))
    return heard


def test_each_is_begun_behind_the_dot_of_the_one_before(app: Flask, smtp: Server) -> None:
    heard = heard_behind_dots(smtp)
    make_signups(app, 4)
    deliver(app)
    assert heard == [True, True, True, False]


def test_none_is_begun_before_its_turn(app: Flask, smtp: Server) -> None:
    app.config["MAIL_LIMIT_TOTAL"] = parse_many("20/second")
    heard = heard_behind_dots(smtp)
    make_signups(app, 3)
    deliver(app)
    assert heard == [False, False, False]


def test_a_mail_that_cannot_be_written_is_not_begun(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 4)
    change(app, ids[1], template="no_such_template")
    change(app, ids[2], status="sending", lease_token=uuid.uuid4())
    deliver(app)
    assert [get(app, email_id).status for email_id in ids] == ["sent", "queued", "sending", "sent"]
    assert [attempt.outcome for attempt in attempts(app, ids[1])] == ["deferred"]
    assert smtp.connections == 1


def test_one_hint_is_enough_for_all_that_is_due(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 23)
    travel(app, 2)
    with app.app_context():
        assert relay.hint(0) == 23
    assert huey.waiting() == 3
    work_once(app)
    assert {get(app, email_id).status for email_id in ids} == {"sent"}


def work_once(app: Flask) -> None:
    task = huey.dequeue()
    assert task is not None
    huey.execute(task)


def test_a_mail_that_outlived_a_worker_is_sent_by_whoever_wakes_up(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 4)
    change(app, ids[1], lease_expiries=1)
    travel(app, 2)
    with app.app_context():
        assert relay.hint(0) == 4
    assert huey.waiting() == 1
    work_once(app)
    assert {get(app, email_id).status for email_id in ids} == {"sent"}


def test_a_refused_mail_ends_alone(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 4)
    smtp.actions["RCPT"] = lambda connection: (
        "550 no such user" if connection.recipients[-1].startswith("mick1@") else None
    )
    deliver(app)
    assert [get(app, email_id).status for email_id in ids] == ["sent", "dead", "sent", "sent"]


def test_trouble_with_the_server_gives_the_rest_back_untried(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 4)
    smtp.actions["MAIL"] = lambda _connection: "451 4.7.0 too busy" if smtp.mails else None
    deliver(app)
    rows = [get(app, email_id) for email_id in ids]
    assert [row.status for row in rows] == ["sent", "queued", "queued", "queued"]
    assert [len(attempts(app, email_id)) for email_id in ids] == [1, 1, 0, 0]
    assert [(row.attempts, row.lease_token) for row in rows[1:]] == [(0, None)] * 3


def test_what_another_worker_took_is_not_settled_with_its_token(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 3)

    def take(_connection: Connection) -> None:
        if len(smtp.mails) == 1:
            for email_id in ids[:2]:
                change(app, email_id, lease_token=uuid.uuid4(), locked_by="another")

    def look(_connection: Connection) -> None:
        # This takes SQLite's only lock, which no conversation may hold.
        change(app, ids[2], request_id=None)

    smtp.actions.update(answer=take, dot=look)
    deliver(app)
    rows = [get(app, email_id) for email_id in ids]
    assert [(row.status, row.locked_by) for row in rows] == [
        ("sending", "another"),
        ("sending", "another"),
        ("sent", None),
    ]


def test_an_error_of_ours_leaves_no_mail_leased(app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = make_signups(app, 3)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(send, "send", fail)
    with pytest.raises(RuntimeError):
        deliver(app)
    # Except the one being sent: its lease decides who may have it.
    assert [get(app, email_id).status for email_id in ids] == ["sending", "queued", "queued"]


def test_a_worker_that_is_told_to_stop_gives_the_rest_back(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 3)

    def stop(_connection: Connection) -> None:
        mail.stop()

    smtp.actions["answer"] = stop
    deliver(app)
    rows = [get(app, email_id) for email_id in ids]
    assert [(row.status, row.attempts, row.lease_token) for row in rows] == [
        ("sent", 1, None),
        ("queued", 0, None),
        ("queued", 0, None),
    ]


def test_the_lease_of_those_that_wait_is_renewed(app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = make_signups(app, 3)
    ends: list[datetime] = []
    # Just enough of the lease is left for a whole send: a moment later it is too little.
    monkeypatch.setattr(leases, "MARGIN", send.FINISH_MARGIN + 0.01)

    def look(_connection: Connection) -> None:
        ends.extend(filter(None, [get(app, ids[2]).lease_until]))
        # A moment later, as above.
        time.sleep(0.02)

    smtp.actions["dot"] = look
    deliver(app)
    assert ends == sorted(set(ends))
    assert {get(app, email_id).status for email_id in ids} == {"sent"}


def test_a_mail_that_outlived_a_worker_goes_alone(app: Flask) -> None:
    ids = make_signups(app, 4)
    for outlived in (ids[0], ids[2]):
        change(app, outlived, lease_expiries=1)
    claims = [[email.id for email in claim(app, limit=10)] for _ in range(3)]
    assert claims == [[ids[0]], [ids[1], ids[3]], [ids[2]]]


def test_a_hint_whose_mail_went_with_others_claims_once(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    deliver(app)
    with app.app_context():
        asked = count_queries()
        tasks.deliver_email.call_local(str(email_id))
    assert sum(statement.startswith(("UPDATE", "WITH")) for statement in asked) == 1
    # Only the claim, and whether the breaker is open.
    assert len([statement for statement in asked if not statement.startswith("BEGIN")]) == 2, asked
    assert len(smtp.mails) == 1


def count_queries() -> list[str]:
    """Return a list to which each query from now on is added."""
    asked: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *details: asked.append(details[2]))
    return asked


def test_a_batch_that_turns_out_to_be_slow_leaves_the_rest_to_others(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LONGEST_SECONDS", 0.0)
    monkeypatch.setattr(throughput.BatchSize, "now", lambda _self: 3)
    ids = make_signups(app, 3)
    left: list[tuple[uuid.UUID, list[str]]] = []
    with app.app_context():
        worker.deliver_due(6, lambda first: left.append((first, [get(app, email_id).status for email_id in ids])))
    assert left == [(ids[1], ["sent", "queued", "queued"]), (ids[2], ["sent", "sent", "queued"])]
    assert {(get(app, email_id).status, get(app, email_id).lease_token) for email_id in ids} == {("sent", None)}


def test_the_failure_of_another_is_not_the_hinted_mails(app: Flask, smtp: Server) -> None:
    ids = make_signups(app, 2)
    smtp.actions["RCPT"] = lambda connection: (
        "550 no such user" if connection.recipients[-1].startswith("mick1@") else None
    )
    wake(app, ids[0])
    third = make_signup(app, username="mick10", address="mick1@example.org")
    with pytest.raises(DeliveryFailed):
        wake(app, third)


def test_a_worker_takes_what_it_sends_in_half_a_second() -> None:
    size = BatchSize()
    assert size.now() == 1
    size.note(1, 0.01)
    assert size.now() == 50
    size.note(10, 1.0)
    assert size.now() == 5
    size.note(1, 20.0)
    assert size.now() == 1


def test_no_more_workers_send_than_there_are_connections(app: Flask, smtp: Server) -> None:
    """A worker that waits for a connection claims nothing that another consumer could send."""
    ids = make_signups(app, 5)
    throughput.batch_size.note(1, 10)
    is_over = threading.Event()

    def wait(_connection: Connection) -> None:
        is_over.wait(20)

    smtp.actions["RCPT"] = wait
    with ThreadPoolExecutor(4) as threads:
        woken = [threads.submit(wake, app, email_id) for email_id in ids[:4]]
        wait_until(lambda: len(smtp.open) == 2, "two do not send")
        leased = [get(app, email_id).status for email_id in ids].count("sending")
        is_over.set()
        for hint in woken:
            hint.result(timeout=20)
    assert leased == 2
    assert {get(app, email_id).status for email_id in ids} == {"sent"}


def test_while_all_workers_are_at_it_the_relay_hints_nothing(app: Flask) -> None:
    make_signup(app)
    travel(app, 2)
    with app.app_context():
        for _ in range(relay.QUEUE_MAX):
            tasks.deliver_later(uuid.uuid4())
        assert relay.sweep() == relay.LONGEST_SLEEP / 2
    assert huey.waiting() == relay.QUEUE_MAX


def test_tasks_of_ones_own_that_wait_keep_no_mail_from_its_hint(app: Flask) -> None:
    task = huey.task(name="one_of_my_own")(print)
    make_signup(app)
    travel(app, 2)
    try:
        with app.app_context():
            for number in range(relay.QUEUE_MAX):
                huey.enqueue(task.s(number))
            relay.sweep()
        # A hint comes before them.
        assert [waiting.name for waiting in huey.pending(2)] == ["deliver_email", "one_of_my_own"]
    finally:
        huey._registry.unregister(task.task_class)


def test_mails_go_while_all_workers_are_at_tasks_that_are_none(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    travel(app, 2)
    with app.app_context():
        relay.sweep()
        relay.sweep()
        assert (huey.waiting(), smtp.mails) == (1, [])
        travel(app, relay.UNHEARD)
        relay.sweep()
    assert get(app, email_id).status == "sent"


def test_the_relay_fills_the_queue_no_further(app: Flask) -> None:
    make_signups(app, relay.QUEUE_MAX + 5)
    travel(app, 2)
    throughput.batch_size.note(1, 10)
    with app.app_context():
        relay.sweep()
        relay.sweep()
    assert huey.waiting() == relay.QUEUE_MAX


def test_who_finds_all_places_taken_is_free_for_other_tasks(app: Flask, smtp: Server) -> None:
    (email_id,) = make_signups(app, 1)
    taken = [mail.places.acquire(blocking=False) for _ in range(app.config["MAIL_CONNECTIONS"])]
    wake(app, email_id)
    assert (all(taken), smtp.mails) == (True, [])
    for _ in taken:
        mail.places.release()
    wake(app, email_id)
    assert len(smtp.mails) == 1


def test_with_all_places_taken_the_relay_hints_once_a_second(app: Flask) -> None:
    make_signups(app, 5)
    travel(app, 2)
    throughput.batch_size.note(1, 10)
    taken = [mail.places.acquire(blocking=False) for _ in range(app.config["MAIL_CONNECTIONS"])]
    with app.app_context():
        assert relay.sweep() == relay.LONGEST_SLEEP / 2
        assert huey.waiting() == 1
        for _ in taken:
            mail.places.release()
        assert relay.sweep() == relay.SHORTEST_SLEEP
    assert huey.waiting() == 5


def test_a_pass_through_what_is_due_ends_where_nobody_needs_it(app: Flask) -> None:
    ids = make_signups(app, 6)
    with app.app_context():
        db.session.execute(update(VerifyEmail).values(used_at=db_now()))
        db.session.commit()
        worker.deliver_due(4)
    assert [get(app, email_id).status for email_id in ids].count("queued") == 2


def test_mails_that_outlived_a_worker_are_hinted_as_any_other(app: Flask) -> None:
    change(app, make_signup(app), lease_expiries=1)
    travel(app, 2)
    with app.app_context():
        relay.sweep()
    assert huey.waiting() == 1
