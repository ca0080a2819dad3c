"""Sending: what arrives, and what each answer of the mail server does to the promise."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import exc, select, update

from harness.processes import free_port
from harness.smtp_server import Server
from tests.factories import attempts, change, deliver, get, make_signup
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery.failures import DeliveryFailed
from webapp.extensions import mail
from webapp.outbox import outcomes
from webapp.outbox.outgoing_email import OutgoingEmail


def test_a_due_mail_is_sent_once(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    deliver(app, email_id)
    deliver(app, email_id)
    (mail,) = smtp.mails
    assert mail.recipients == ["mick@example.com"]
    assert get(app, email_id).status == "sent"


def test_a_mail_is_not_sent_before_its_delay_is_over(app: Flask, smtp: Server) -> None:
    deliver(app, make_signup(app, due=False))
    assert smtp.mails == []


def test_a_crash_after_the_servers_answer_sends_the_same_mail_again(app: Flask, smtp: Server) -> None:
    """The one duplicate that nobody can prevent has the same id and the same link."""
    email_id = make_signup(app)
    deliver(app, email_id)
    change(app, email_id, status="queued", sent_at=None)
    deliver(app, email_id)
    first, second = smtp.mails
    assert first.message["Message-ID"] == second.message["Message-ID"]
    assert first.link == second.link


@pytest.mark.parametrize("answer", ["451 try later", "452 mailbox full"])
def test_a_refusal_for_now_is_tried_again_by_the_backoff(app: Flask, smtp: Server, answer: str) -> None:
    email_id = make_signup(app)
    smtp.actions["RCPT"] = answer
    with pytest.raises(DeliveryFailed):
        deliver(app, email_id)
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_smtp_code) == ("queued", 1, int(answer[:3]))
    del smtp.actions["RCPT"]
    change(app, email_id, next_attempt_at=db_now())
    deliver(app, email_id)
    assert len(smtp.mails) == 1


@pytest.mark.parametrize(("command", "answer"), [("RCPT", "550 no such user"), ("dot", "554 we dislike it")])
def test_a_refusal_for_good_ends_the_mail_with_its_reason(app: Flask, smtp: Server, command: str, answer: str) -> None:
    email_id = make_signup(app)
    smtp.actions[command] = answer
    with pytest.raises(DeliveryFailed):
        deliver(app, email_id)
    row = get(app, email_id)
    assert (row.status, row.attempts, row.last_smtp_code) == ("dead", 1, int(answer[:3]))
    (attempt,) = attempts(app, email_id)
    assert (attempt.outcome, attempt.code) == ("failed", int(answer[:3]))


def test_a_mail_server_that_is_away_spends_no_attempt(app: Flask) -> None:
    email_id = make_signup(app)
    app.extensions["mail"].port = free_port()
    with pytest.raises(DeliveryFailed):
        deliver(app, email_id)
    row = get(app, email_id)
    assert (row.status, row.attempts) == ("queued", 0)
    assert attempts(app, email_id)[0].phase == "connect"


def test_421_spends_no_attempt(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    smtp.actions["RCPT"] = "421 closing"
    with pytest.raises(DeliveryFailed):
        deliver(app, email_id)
    assert (get(app, email_id).status, get(app, email_id).attempts) == ("queued", 0)


def test_two_mails_in_a_row_use_one_connection(app: Flask, smtp: Server) -> None:
    for name in ("ann", "ben"):
        deliver(app, make_signup(app, username=name, address=f"{name}@example.com"))
    assert len(smtp.mails) == 2
    assert smtp.connections == 1


def test_a_known_address_is_told_so_at_its_own_spelling_and_without_a_token(app: Flask, smtp: Server) -> None:
    make_signup(app, address="Mick@example.com")
    with app.app_context():
        db.session.execute(update(User).values(email_verified_at=db_now(), purge_at=None))
        db.session.commit()
    deliver(app, make_signup(app, username="other", address="mick@EXAMPLE.com"))
    (mail,) = smtp.mails
    assert mail.recipients == ["Mick@example.com"]
    assert mail.message["Subject"] == "You already have an account with Acme"
    assert "/verify/" not in mail.content.decode()


def test_an_address_that_no_header_can_hold_ends_the_mail_in_the_end(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    change(app, email_id, to_address="jürgen@example.com", max_attempts=2)
    for _ in range(2):
        with pytest.raises(DeliveryFailed, match="not an address that mail servers accept"):
            deliver(app, email_id)
        change(app, email_id, next_attempt_at=db_now())
    assert smtp.mails == []
    row = get(app, email_id)
    assert (row.status, row.last_error_class, row.lease_token) == ("dead", "Unsendable", None)


def test_a_retry_never_chooses_another_template(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    smtp.actions["RCPT"] = "451 try later"
    with pytest.raises(DeliveryFailed):
        deliver(app, email_id)
    assert get(app, email_id).template == "verify_email"


def test_a_mail_is_canceled_when_it_is_needless_by_now(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    with app.app_context():
        db.session.execute(update(VerifyEmail).values(used_at=db_now()))
        db.session.commit()
    deliver(app, email_id)
    assert smtp.mails == []
    assert (get(app, email_id).status, get(app, email_id).last_error) == ("canceled", "already verified")


def test_a_mail_whose_user_is_gone_is_canceled(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    with app.app_context():
        db.session.delete(db.session.scalars(select(User)).one())
        db.session.commit()
    deliver(app, email_id)
    assert smtp.mails == []
    assert get(app, email_id).status == "canceled"


def test_a_worker_that_lost_its_lease_while_sending_leaves_the_row_alone(
    app: Flask, smtp: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    email_id = make_signup(app)
    settle = outcomes.settle

    def lose_the_lease_first(email: OutgoingEmail, reply: str, *also: Any, **parameters: Any) -> None:
        change(app, email_id, lease_token=uuid.uuid4(), locked_by="another")
        settle(email, reply, *also, **parameters)

    monkeypatch.setattr(outcomes, "settle", lose_the_lease_first)
    deliver(app, email_id)
    assert (get(app, email_id).status, get(app, email_id).locked_by) == ("sending", "another")
    assert "lease_lost" in caplog.text


@pytest.mark.parametrize(
    "error", [exc.OperationalError("", {}, Exception()), exc.InternalError("", {}, Exception()), exc.TimeoutError()]
)
def test_trouble_of_the_database_after_the_250_makes_no_duplicate_of_a_worker_that_stops(
    app: Flask, smtp: Server, monkeypatch: pytest.MonkeyPatch, error: exc.SQLAlchemyError
) -> None:
    email_id = make_signup(app)
    settle, errors = outcomes.settle, [error]

    def fail_at_first(*arguments: Any, **parameters: Any) -> None:
        mail.stop()
        if errors:
            raise errors.pop()
        settle(*arguments, **parameters)

    monkeypatch.setattr(outcomes, "settle", fail_at_first)
    deliver(app, email_id)
    assert (get(app, email_id).status, len(smtp.mails)) == ("sent", 1)
