"""The promise of an email: who may send it, and what is recorded about each attempt."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psycopg
import pytest
from flask import Flask
from limits import parse_many
from sqlalchemy import event, select, text, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from harness.smtp_server import Server
from tests.factories import attempts, change, claim, deliver, get, make_signup, travel, work
from webapp.accounts import account, notices, password_change, users
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db import clock
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import circuit_breaker, tasks, throttle, throughput, worker
from webapp.delivery.circuit_breaker import MailBreaker
from webapp.delivery.failures import DeliveryFailed
from webapp.extensions import mail
from webapp.outbox import (
    address_limits,
    backoff,
    claims,
    due,
    kinds,
    leases,
    outcomes,
    outgoing_email,
    posting,
    reaper,
    transitions,
)
from webapp.outbox.attempts import REPLY_MAX, Failure, redact
from webapp.outbox.claims import LeaseLost
from webapp.outbox.outgoing_email import OutgoingEmail

TROUBLE = Failure("SmtpError", "451 try later", phase="recipient", code=451)


def test_a_mail_is_claimed_only_when_it_is_due(app: Flask) -> None:
    email_id = make_signup(app, due=False)
    assert claim(app) == []
    change(app, email_id, next_attempt_at=db_now())
    (email,) = claim(app)
    assert (email.id, email.status, email.locked_by) == (email_id, "sending", "worker")
    assert email.lease_until is not None
    # MAIL_TIMEOUT of 5 s plus the margin.
    assert (email.lease_until - get(app, email_id).next_attempt_at).total_seconds() >= 20
    with app.app_context():
        assert db.session.scalar(select(OutgoingEmail.lease_until <= db_now(20)))


def test_of_many_workers_one_gets_the_mail(app: Flask) -> None:
    make_signup(app)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: claim(app, f"worker {n}"), range(8)))
    assert sum(map(len, claims)) == 1


def test_a_batch_goes_to_one_worker_each_and_the_urgent_first(app: Flask) -> None:
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(4)]
    change(app, ids[2], priority=posting.VERIFICATION_PRIORITY - 1)
    first = claim(app, limit=1)
    rest = claim(app, limit=10)
    assert [email.id for email in first] == [ids[2]]
    assert {email.id for email in rest} == {ids[0], ids[1], ids[3]}


def test_settling_ends_the_lease_and_writes_the_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    (email,) = claim(app)
    with app.app_context():
        outcomes.settle(email, "250 taken")
        db.session.commit()
    row = get(app, email_id)
    assert (row.status, row.attempts, row.lease_token) == ("sent", 1, None)
    assert row.sent_at is not None
    (attempt,) = attempts(app, email_id)
    assert (attempt.outcome, attempt.code, attempt.worker) == ("sent", 250, "worker")
    assert attempt.started_at <= attempt.finished_at


def test_a_worker_that_lost_its_lease_writes_nothing(app: Flask) -> None:
    email_id = make_signup(app)
    (slow,) = claim(app, "slow")
    change(app, email_id, lease_until=db_now(-1))
    with app.app_context():
        assert reaper.reap() == 1
        db.session.commit()
    (fast,) = claim(app, "fast")
    with app.app_context():
        with pytest.raises(LeaseLost):
            outcomes.settle(slow, "250 taken")
        with pytest.raises(LeaseLost):
            outcomes.postpone(slow, TROUBLE)
        with pytest.raises(LeaseLost):
            outcomes.bury(slow, TROUBLE)
        with pytest.raises(LeaseLost):
            outcomes.cancel(slow, "no reason")
        db.session.commit()
    row = get(app, email_id)
    assert (row.status, row.locked_by, row.lease_token) == ("sending", "fast", fast.lease_token)
    assert [attempt.outcome for attempt in attempts(app, email_id)] == ["lease_expired"]


def test_postponing_backs_off_and_gives_up_after_the_last_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    change(app, email_id, max_attempts=2)
    (email,) = claim(app)
    with app.app_context():
        outcomes.postpone(email, TROUBLE)
        db.session.commit()
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_smtp_code, row.last_error) == ("queued", 1, 451, "451 try later")
    assert claim(app) == []
    change(app, email_id, next_attempt_at=db_now())
    (email,) = claim(app)
    with app.app_context():
        outcomes.postpone(email, TROUBLE)
        db.session.commit()
    assert get(app, email_id).status == "dead"
    assert [attempt.outcome for attempt in attempts(app, email_id)] == ["deferred", "failed"]


def test_postponing_for_the_servers_sake_spends_no_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    (email,) = claim(app)
    with app.app_context():
        outcomes.requeue(email, TROUBLE, delay=15)
        db.session.commit()
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)


def test_a_mail_that_outlived_five_workers_is_set_apart_for_an_hour(app: Flask) -> None:
    email_id = make_signup(app)
    for expiries in range(1, 6):
        assert len(claim(app)) == 1
        change(app, email_id, lease_until=db_now(-1))
        with app.app_context():
            reaper.reap()
            db.session.commit()
        assert get(app, email_id).lease_expiries == expiries
        assert get(app, email_id).in_doubt
    assert get(app, email_id).status == "queued"
    assert claim(app) == []
    change(app, email_id, next_attempt_at=db_now())
    assert len(claim(app)) == 1


def test_a_mail_nobody_waits_for_any_more_is_not_sent(app: Flask) -> None:
    email_id = make_signup(app)
    change(app, email_id, expires_at=db_now(-1))
    assert claim(app) == []
    with app.app_context():
        reaper.reap()
        db.session.commit()
    assert get(app, email_id).status == "dead"


def test_a_mail_is_to_be_hinted_while_it_is_due_and_nobody_has_it(app: Flask) -> None:
    email_id = make_signup(app)
    with app.app_context():
        assert due.to_hint(10, overdue=5, signups=True) == []
        assert due.to_hint(10, overdue=-1, signups=True) == [email_id]
        assert due.to_hint(10, overdue=-1, signups=False) == []
    claim(app)
    with app.app_context():
        assert due.to_hint(10, overdue=-1, signups=True) == []


def test_the_database_itself_refuses_a_lease_on_what_is_not_being_sent(app: Flask) -> None:
    email_id = make_signup(app)
    with pytest.raises(IntegrityError):
        change(app, email_id, status="sending")


def test_the_backoff_doubles_up_to_half_an_hour() -> None:
    for attempts_so_far, longest in enumerate([30, 60, 120, 240, 480, 960, 1800, 1800, 1800]):
        for _ in range(50):
            assert longest * 0.66 < backoff.backoff(attempts_so_far) <= longest


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("550 <mick@example.com>: no such user", "550 <address> no such user"),
        ("see https://mail.example/help?u=mick", "see <link>"),
        ("your code 482 913 was refused", "your code <code> was refused"),
        ("two\r\nlines\x00", "two  lines "),
        ("x" * 400, "x" * 300),
    ],
)
def test_replies_are_kept_without_addresses_links_and_codes(reply: str, kept: str) -> None:
    assert redact(reply) == kept


@pytest.mark.timeout(30)
def test_a_long_reply_is_read_once() -> None:
    assert redact("a" * 500_000) == "a" * REPLY_MAX


def test_an_outcome_that_cannot_be_written_is_none_and_nobody_else_has_trouble_with_it(app: Flask) -> None:
    email_id = make_signup(app)
    with app.app_context():
        (email,) = claims.claim("ann")
        db.session.commit()
        begun_ticks, email.begun_ticks = email.begun_ticks, -math.inf
        with pytest.raises(SQLAlchemyError):
            outcomes.settle(email, "250 taken")
        db.session.rollback()
        assert get(app, email_id).status == "sending"
        email.begun_ticks = begun_ticks
        outcomes.settle(email, "250 taken")
    assert get(app, email_id).status == "sent"


def test_what_was_written_by_a_clock_that_was_ahead_counts_as_now(app: Flask) -> None:
    dead, waiting, delayed = (make_signup(app, username=name, address=f"{name}@example.com") for name in "abc")
    token, year = uuid.uuid4(), 365 * 86400
    change(app, dead, status="sending", lease_token=token, lease_until=db_now(3600 + 20), created_at=db_now(3600))
    change(app, waiting, created_at=db_now(3600), next_attempt_at=db_now(3600 + 10))
    change(app, delayed, next_attempt_at=db_now(year))
    with app.app_context():
        db.session.execute(update(MailBreaker).values(opened_at=db_now(year), probe_at=db_now(year)))
        db.session.execute(update(throttle.MailPace).values(next_at=db_now(year)))
        db.session.commit()
        app.config["MAIL_LIMIT_TOTAL"] = parse_many("20/second")
        assert circuit_breaker.take_probe()
        assert not throttle.is_full()
        assert throttle.take_turn() == 0
        assert reaper.mend_times() == 3
        db.session.commit()
    assert [email.id for email in claim(app, limit=10)] == [delayed]
    # The undo window of the other one begins anew.
    travel(app, 10)
    assert [email.id for email in claim(app, limit=10)] == [waiting]
    # Its worker may be alive and sending: it keeps the email for the time of a send.
    assert get(app, dead).status == "sending"
    travel(app, 21)
    with app.app_context():
        assert reaper.reap() >= 1
        db.session.commit()
    assert get(app, dead).status == "queued"


def test_a_mail_for_next_month_waits_for_as_long_as_was_promised(app: Flask) -> None:
    month = 30 * 86400
    with app.app_context():
        usual, early = (
            posting.add(to_address="a@example.com", user_id=None, dedupe_key=key, template="test", delay=month)
            for key in ("usual", "early")
        )
        db.session.commit()
        # The clock was ahead while this one was promised.
        change(app, early, created_at=db_now(3600), next_attempt_at=db_now(3600 + month))
        assert reaper.mend_times() == 1
        db.session.commit()
        for email_id in (usual, early):
            waits = get(app, email_id).next_attempt_at - clock.now()
            assert abs(waits.total_seconds() - month) < 60
        # Later, a clock that is ahead postpones it: that is no promise.
        change(app, usual, created_at=db_now(-month - 1), next_attempt_at=db_now(month))
        assert reaper.mend_times() == 1
        db.session.commit()
    assert [email.id for email in claim(app, limit=10)] == [usual]


def test_a_mailbox_that_got_a_mail_in_the_future_gets_another_now(app: Flask, smtp: Server) -> None:
    app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many("1/minute")
    first = make_signup(app)
    change(app, first, status="sent", sent_at=db_now(86400), finished_at=db_now(86400))
    second = make_signup(app, username="other")
    deliver(app, second)
    assert get(app, second).status == "sent"
    mail.close()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux tells how long a machine slept")
def test_a_worker_whose_machine_slept_does_not_trust_its_lease(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abs(clock.ticks() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60
    email_id = make_signup(app)

    def sleep(_connection: object) -> None:
        slept = clock.ticks() + 3600
        monkeypatch.setattr(leases, "ticks", lambda: slept)

    smtp.actions["DATA"] = sleep
    with suppress(DeliveryFailed, LeaseLost):
        deliver(app, email_id)
    assert smtp.mails == []
    mail.close()


def test_a_mail_whose_settlement_was_lost_is_sent_again(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover to a replica that had not received it."""
    email_id = make_signup(app)
    with app.app_context():
        tasks.deliver_email.call_local(str(email_id))
    assert get(app, email_id).status == "sent"
    lost = {"sent_at": None, "finished_at": None, "attempts": 0, "lease_token": uuid.uuid4()}
    change(app, email_id, status="sending", lease_until=db_now(-1), **lost)
    later = time.monotonic() + 31
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for _ in range(3):
        work(app)
        travel(app, 31)
    assert get(app, email_id).status == "sent"
    assert len(smtp.mails) == 2
    mail.close()


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_an_account_ends_beside_a_claim_of_its_mails(app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    make_signup(app)
    with app.app_context():
        worker.deliver_due(1)
        user = db.session.scalars(select(User)).one()
        user.email_verified_at, user.purge_at = clock.now(), None
        notices.post(user, kinds.USERNAME_CHANGED)
        db.session.commit()
        reset = password_change.ask(email_addresses.parse_address(user.email), "en")
    throughput.batch_size.note(1, 0.01)
    claimed, held = threading.Event(), threading.Event()
    errors: list[Exception] = []
    find_owner, lock_row = password_change.find_owner, users.lock_row

    def find_once_it_is_held(email: outgoing_email.OutgoingEmail) -> None:
        claimed.set()
        held.wait(2)
        find_owner(email)

    def lock_and_wait(user: User) -> None:
        lock_row(user)
        held.set()
        claimed.wait(2)

    monkeypatch.setattr(password_change, "find_owner", find_once_it_is_held)
    monkeypatch.setattr(users, "lock_row", lock_and_wait)

    def end() -> None:
        with app.app_context():
            account.end(db.session.scalars(select(User)).one())

    def send() -> None:
        with app.app_context():
            worker.deliver_due(10)
        mail.close()

    def noting(run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test fails
            errors.append(error)

    threads = [threading.Thread(target=noting, args=[run]) for run in (send, end)]
    threads[0].start()
    claimed.wait(5)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert get(app, reset).status == "canceled"


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_nobody_waits_for_a_row_that_another_worker_keeps(app: Flask, process_environ: dict[str, str]) -> None:
    frozen, dead, other = (make_signup(app, username=name, address=f"{name}@example.com") for name in "abc")
    for email_id in (frozen, dead):
        change(app, email_id, status="sending", lease_token=uuid.uuid4(), lease_until=db_now(-1))
    with psycopg.connect(process_environ["DATABASE_URL"].replace("+psycopg", "")) as frozen_worker:
        frozen_worker.execute("SELECT FROM outgoing_emails WHERE id = %s FOR UPDATE", [frozen])
        frozen_worker.execute("SELECT FROM mail_breaker FOR UPDATE")
        frozen_worker.execute("SELECT pg_advisory_xact_lock(hashtextextended('budget:total', 0))")
        frozen_worker.execute("SELECT pg_advisory_xact_lock(hashtextextended('budget:signup:c@example.com', 0))")
        app.config["MAIL_LIMIT_TOTAL"] = parse_many("50/hour")
        with app.app_context():
            db.session.execute(text("SET lock_timeout = 1000"))
            assert reaper.reap() == 1
            circuit_breaker.trip("down")
            assert not circuit_breaker.take_probe()
            circuit_breaker.reset()
            transitions.cancel(outgoing_email.OutgoingEmail.id == frozen, reason="no reason")
            assert throttle.allowance().mails == 0
            app.config["MAIL_LIMIT_TOTAL"] = []
            app.config["MAIL_LIMIT_PER_ADDRESS"] = parse_many("1/minute")
            # An email that outlived a worker is claimed alone.
            claimed = [*claims.claim("worker", limit=10), *claims.claim("worker", limit=10)]
            assert address_limits.admit([email for email in claimed if email.id == other]) == []
            db.session.commit()
    assert (get(app, dead).locked_by, get(app, other).status) == ("worker", "queued")


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_a_transaction_of_somebody_elses_that_holds_all_users_doubles_no_mail(
    app: Flask, process_environ: dict[str, str], smtp: Server
) -> None:
    """As when an operator fills in a new column by hand, and looks at the result for a while."""
    email_id = make_signup(app)
    with psycopg.connect(process_environ["DATABASE_URL"]) as somebody:
        somebody.execute("UPDATE users SET full_name = 'Mick'")
        deliver(app, email_id)
        assert get(app, email_id).status == "sent"
        assert expires(app)
    assert len(smtp.mails) == 1


def test_no_statement_names_a_column_that_the_next_release_drops(app: Flask, smtp: Server) -> None:
    said: list[str] = []
    with app.app_context():
        event.listen(db.engine, "before_cursor_execute", lambda *details: said.append(details[2]))
    email_id = make_signup(app)
    deliver(app, email_id)
    assert app.test_cli_runner().invoke(args=["mail", "show", str(email_id)]).exit_code == 0
    assert get(app, email_id).status == "sent"
    assert len(said) > 5
    assert [statement for statement in said if "hinted_at" in statement] == []


def expires(app: Flask) -> bool:
    with app.app_context():
        return db.session.scalars(select(VerifyEmail.expires_at)).one() is not None
