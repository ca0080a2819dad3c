"""The promise of a mail: who may send it, and what is kept of each try."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from tests.factories import attempts, change, claim, get, make_signup
from webapp import backlog, claims, outbox, verification
from webapp.attempts import Failure, redact
from webapp.claims import LeaseLost
from webapp.clock import db_now
from webapp.extensions import db
from webapp.outbox import OutgoingEmail

TROUBLE = Failure("SmtpError", "451 try later", phase="recipient", code=451)


def test_a_mail_is_claimed_only_when_it_is_due(app: Flask) -> None:
    email_id = make_signup(app, due=False)
    assert claim(app, email_id=email_id) == []
    change(app, email_id, next_attempt_at=db_now())
    (email,) = claim(app, email_id=email_id)
    assert (email.id, email.status, email.locked_by) == (email_id, "sending", "worker")
    assert email.lease_until is not None
    # MAIL_TIMEOUT of 5 s and the margin.
    assert (email.lease_until - get(app, email_id).next_attempt_at).total_seconds() >= 20
    with app.app_context():
        assert db.session.scalar(select(OutgoingEmail.lease_until <= db_now(20)))


def test_of_many_workers_one_gets_the_mail(app: Flask) -> None:
    email_id = make_signup(app)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: claim(app, f"worker {n}", email_id=email_id), range(8)))
    assert sum(map(len, claims)) == 1


def test_a_batch_goes_to_one_worker_each_and_the_urgent_first(app: Flask) -> None:
    ids = [make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com") for n in range(4)]
    change(app, ids[2], priority=outbox.VERIFICATION_PRIORITY - 1)
    first = claim(app, limit=1)
    rest = claim(app, limit=10)
    assert [email.id for email in first] == [ids[2]]
    assert {email.id for email in rest} == {ids[0], ids[1], ids[3]}


def test_settling_ends_the_lease_and_writes_the_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    (email,) = claim(app)
    with app.app_context():
        claims.settle(email, "250 taken")
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
        assert backlog.reap() == 1
        db.session.commit()
    (fast,) = claim(app, "fast")
    with app.app_context():
        with pytest.raises(LeaseLost):
            claims.settle(slow, "250 taken")
        with pytest.raises(LeaseLost):
            claims.postpone(slow, TROUBLE)
        with pytest.raises(LeaseLost):
            claims.bury(slow, TROUBLE)
        with pytest.raises(LeaseLost):
            claims.drop(slow, "no reason")
        db.session.commit()
    row = get(app, email_id)
    assert (row.status, row.locked_by, row.lease_token) == ("sending", "fast", fast.lease_token)
    assert [attempt.outcome for attempt in attempts(app, email_id)] == ["lease_expired"]


def test_postponing_backs_off_and_gives_up_after_the_last_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    change(app, email_id, max_attempts=2)
    (email,) = claim(app)
    with app.app_context():
        claims.postpone(email, TROUBLE)
        db.session.commit()
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_smtp_code, row.last_error) == ("queued", 1, 451, "451 try later")
    assert claim(app) == []
    change(app, email_id, next_attempt_at=db_now())
    (email,) = claim(app)
    with app.app_context():
        claims.postpone(email, TROUBLE)
        db.session.commit()
    assert get(app, email_id).status == "dead"
    assert [attempt.outcome for attempt in attempts(app, email_id)] == ["deferred", "failed"]


def test_postponing_for_the_servers_sake_spends_no_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    (email,) = claim(app)
    with app.app_context():
        claims.give_back(email, TROUBLE, delay=15)
        db.session.commit()
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)


def test_a_mail_that_outlived_five_workers_is_set_apart_for_an_hour(app: Flask) -> None:
    email_id = make_signup(app)
    for expiries in range(1, 6):
        assert len(claim(app)) == 1
        change(app, email_id, lease_until=db_now(-1))
        with app.app_context():
            backlog.reap()
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
        backlog.reap()
        db.session.commit()
    assert get(app, email_id).status == "dead"


def test_an_overdue_mail_is_hinted_once_in_a_while(app: Flask) -> None:
    email_id = make_signup(app)
    with app.app_context():
        assert backlog.take_unhinted(10, overdue=5, again_after=30) == []
        assert backlog.take_unhinted(10, overdue=-1, again_after=30) == [(email_id, 0)]
        assert backlog.take_unhinted(10, overdue=-1, again_after=30) == []
        assert backlog.take_unhinted(10, overdue=-1, again_after=-1) == [(email_id, 0)]


def test_the_database_itself_refuses_a_lease_on_what_is_not_being_sent(app: Flask) -> None:
    email_id = make_signup(app)
    with pytest.raises(IntegrityError):
        change(app, email_id, status="sending")


def test_the_backoff_doubles_up_to_half_an_hour() -> None:
    for attempts_so_far, longest in enumerate([30, 60, 120, 240, 480, 960, 1800, 1800, 1800]):
        for _ in range(50):
            assert longest * 0.66 < claims.backoff(attempts_so_far) <= longest


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


def test_an_outcome_that_lacks_a_part_is_refused_and_nobody_else_has_trouble_with_it(app: Flask) -> None:
    email_id = make_signup(app)
    with app.app_context():
        (email,) = claims.claim("ann")
        db.session.commit()
        with pytest.raises(SQLAlchemyError):
            claims.settle(email, "250 taken", verification.HANDED_OFF, proof=email.verify_email_id)
        db.session.rollback()
        claims.settle(email, "250 taken")
    assert get(app, email_id).status == "sent"
