"""Operating from the command line: pausing, canceling, trying out, and creating accounts."""

from __future__ import annotations

import getpass
import json
import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import select

from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.cli.test_cli import findings, flask_mail, refused
from tests.factories import change, get, make_signup, work
from webapp import create_app
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import circuit_breaker, heartbeats
from webapp.outbox.outgoing_email import OutgoingEmail

STRONG = "violet tractor by moonlight"


def flask_users(app: Flask, *arguments: str, **options: Any) -> Result:
    return app.test_cli_runner().invoke(args=["users", *arguments], **options)


def audited(app: Flask) -> list[tuple[str, str | None]]:
    """What operators did, with details; always by the login name of whoever runs the tests."""
    with app.app_context():
        events = db.session.scalars(
            select(AuditEvent).where(AuditEvent.actor.is_not(None)).order_by(AuditEvent.id)
        ).all()
    assert {event.actor for event in events} <= {os.environ.get("OPERATOR") or getpass.getuser()}
    return [(event.action, event.detail) for event in events]


def test_while_mail_is_paused_nobody_sends_any_and_afterwards_all_of_it_goes(app: Flask, smtp: Server) -> None:
    assert flask_mail(app, "pause", "the provider is moving").exit_code == 0
    email_id = make_signup(app)
    work(app)
    result = flask_mail(app, "relay", "--once")
    assert result.exit_code == 1
    assert "flask mail resume" in result.stderr
    assert (get(app, email_id).status, smtp.connections) == ("queued", 0)
    assert "the provider is moving" in flask_mail(app, "stats").stdout
    assert "the provider is moving: flask mail resume" in flask_mail(app, "doctor").stdout
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    change(app, email_id, next_attempt_at=db_now(-61))
    # It is as the operator wants it.
    assert findings(app) == []
    assert flask_mail(app, "pause", "again").exit_code == 1
    assert flask_mail(app, "resume").stdout == "resumed; 1 email is due\n"
    assert flask_mail(app, "resume").exit_code == 1
    work(app)
    assert get(app, email_id).status == "sent"
    assert audited(app) == [("paused", "the provider is moving"), ("resumed", None)]


def test_a_canceled_mail_is_not_sent_and_its_person_can_have_another(
    visitor: Visitor, app: Flask, smtp: Server
) -> None:
    visitor.sign_up()
    with app.app_context():
        email_id = db.session.scalars(select(OutgoingEmail.id)).one()
    assert flask_mail(app, "cancel", str(email_id), input="n\n").exit_code == 1
    assert get(app, email_id).status == "queued"
    assert flask_mail(app, "cancel", str(email_id), "--yes").stdout == "canceled 1\n"
    change(app, email_id, next_attempt_at=db_now())
    work(app)
    assert smtp.mails == []
    visitor.open("/signup/sent")
    assert "We couldn't reach that address" in visitor.text
    visitor.submit("/signup/resend")
    work(app)
    assert len(smtp.mails) == 1
    assert flask_mail(app, "cancel", str(email_id), "--yes").exit_code == 1
    assert audited(app) == [("mail_canceled", f"mail {email_id}")]


def test_dead_mails_are_canceled_and_retried_by_their_answer_and_audited(app: Flask, smtp: Server) -> None:
    refused(app, smtp)
    for name in ("ann", "bob"):
        smtp.actions["RCPT"] = "552 5.2.2 full"
        change(app, make_signup(app, username=name, address=f"{name}@example.com"), next_attempt_at=db_now(-5))
        work(app)
    smtp.actions.clear()
    assert flask_mail(app, "cancel", "--code", "552", "--yes").stdout == "canceled 2\n"
    assert flask_mail(app, "retry", "--dead").stdout == "revived 1, made due 0\n"
    assert [action for action, _ in audited(app)] == ["mail_canceled", "mail_retried"]
    assert audited(app)[0][1] == "2 mails"
    assert flask_mail(app, "cancel", "--yes").exit_code == 2


def test_a_test_mail_is_sent_at_once_and_each_answer_is_told(app: Flask, smtp: Server) -> None:
    result = flask_mail(app, "test", "ops@example.com")
    assert result.exit_code == 0, result.output
    steps = [line.split()[:2] for line in result.stdout.splitlines() if not line.startswith(" ")]
    codes = [["greeting", "220"], ["ehlo", "250"], ["sender", "250"], ["recipient", "250"], ["data", "354"]]
    assert steps == [["server", f"127.0.0.1:{smtp.port}"], *codes, ["dot", "250"]]
    (mail,) = smtp.mails
    assert mail.message["Subject"] == "Test email from Acme"
    assert "/verify/" not in mail.text
    assert mail.message_id in result.stderr
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    result = flask_mail(app, "test", "nobody@example.com")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].split(maxsplit=1) == ["recipient", "550 5.1.1 no such user"]
    assert flask_mail(app, "test", "not an address").exit_code == 2
    smtp.actions.clear()
    smtp.stop()
    result = flask_mail(app, "test", "ops@example.com")
    assert result.exit_code == 1
    assert "Connection refused" in result.stdout
    details = [mail.message_id, "not accepted: recipient", "not accepted: connect"]
    assert audited(app) == [("mail_tested", detail) for detail in details]


def test_a_test_mail_that_is_accepted_lets_those_go_that_wait_for_the_mail_server(app: Flask, smtp: Server) -> None:
    smtp.actions["greeting"] = "554 5.3.2 go away"
    waiting = make_signup(app)
    assert flask_mail(app, "relay", "--once").exit_code == 1
    with app.app_context():
        assert circuit_breaker.is_open()
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    result = flask_mail(app, "test", "ops@example.com")
    assert (result.exit_code, smtp.mails) == (1, [])
    assert result.stdout.splitlines()[-1].split(maxsplit=1) == ["greeting", "554 5.3.2 go away"]
    smtp.actions.clear()
    assert flask_mail(app, "pause", "moving").exit_code == 0
    result = flask_mail(app, "test", "ops@example.com")
    assert result.exit_code == 0, result.output
    assert "works again" in result.stderr
    assert "flask mail resume" in result.stderr
    with app.app_context():
        assert not circuit_breaker.is_open()
    assert flask_mail(app, "resume").exit_code == 0
    assert flask_mail(app, "relay", "--once").exit_code == 0
    assert get(app, waiting).status == "sent"


@pytest.mark.parametrize("way", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_test_mail_tells_the_login_and_never_the_password(environ: dict[str, str], way: str) -> None:
    with Server(password="right horse", ways=[way]) as smtp:
        for password, code in (("right horse", 0), ("wrong horse", 1)):
            login = {"MAIL_PORT": str(smtp.port), "MAIL_USERNAME": "signup", "MAIL_PASSWORD": password}
            app = create_app(environ | login)
            result = flask_mail(app, "test", "ops@example.com")
            assert result.exit_code == code, result.output
            answer = {0: "235", 1: "535"}[code]
            assert f"\nlogin     {answer} " in result.stdout
            assert "horse" not in result.output
            with app.app_context():
                db.engine.dispose()


def test_without_a_database_a_test_mail_is_sent_all_the_same(
    environ: dict[str, str], smtp: Server, tmp_path: Path
) -> None:
    app = create_app(environ | {"DATABASE_URL": f"sqlite:///{tmp_path}"})
    result = flask_mail(app, "test", "ops@example.com")
    assert (result.exit_code, len(smtp.mails)) == (3, 1)
    assert "the database isn't responding" in result.stderr
    smtp.actions["MAIL"] = "553 5.1.8 not your sender"
    result = flask_mail(app, "test", "ops@example.com")
    assert (result.exit_code, len(smtp.mails)) == (1, 1)
    assert "553 5.1.8 not your sender" in result.stdout


def test_a_health_check_asks_for_a_worker_of_this_machine(app: Flask) -> None:
    assert flask_mail(app, "workers", "--check").exit_code == 1
    with app.app_context():
        heartbeats.beat("elsewhere:1:abc")
        db.session.commit()
    assert flask_mail(app, "workers", "--check").exit_code == 1
    assert flask_mail(app, "workers").exit_code == 0
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    assert flask_mail(app, "workers", "--check").exit_code == 0


def test_an_admin_is_made_while_no_mail_goes_and_can_sign_in(visitor: Visitor, app: Flask, smtp: Server) -> None:
    smtp.stop()
    result = flask_users(app, "create", "Root@example.com", "--admin", input=f"{STRONG}\n{STRONG}\n")
    assert result.exit_code == 0, result.output
    visitor.open("/login")
    visitor.submit("/login", identifier="root@example.com", password=STRONG)
    assert visitor.path == "/account"
    again = flask_users(app, "create", "root@example.com", "--username", "other", "--generate")
    assert again.exit_code == 2
    assert "already has an account" in again.stderr
    weak = flask_users(app, "create", "b@example.com", input="password1\n")
    assert weak.exit_code == 1
    assert "easy to guess" in weak.stderr
    # It was not asked for a second time.
    assert "Repeat" not in weak.stderr
    assert flask_users(app, "create", "root@example.org", "--generate").exit_code == 2
    assert audited(app) == [("user_created", "admin")]


def test_a_password_is_asked_for_until_it_is_a_good_one(app: Flask) -> None:
    made = flask_users(app, "create", "ann@example.com", input=f"ann\n{STRONG}\n{STRONG}!\n{STRONG}\n{STRONG}\n")
    assert made.exit_code == 0, made.output
    assert made.stderr.count("Repeat for confirmation") == 2
    assert made.stderr.index("must have from 8 to 128 characters") < made.stderr.index("Repeat for confirmation")
    assert "the passwords don't match" in made.stderr


def test_an_account_that_an_operator_makes_ends_pending_signups_of_its_address(
    visitor: Visitor, app: Flask, smtp: Server
) -> None:
    visitor.sign_up(username="stranger", email="mick@example.com")
    result = flask_users(app, "create", "mick@example.com", "--username", "mick", "--generate")
    assert result.exit_code == 0
    password = result.stdout.strip()
    work(app)
    with app.app_context():
        email = db.session.scalars(select(OutgoingEmail)).one()
    change(app, email.id, next_attempt_at=db_now())
    work(app)
    assert all("/verify/" not in mail.text for mail in smtp.mails)
    owner = Visitor("http://signup.example", app)
    owner.open("/login")
    owner.submit("/login", identifier="mick", password=password)
    assert owner.path == "/account"


def test_roles_are_given_and_taken(app: Flask) -> None:
    flask_users(app, "create", "ann@example.com", "--generate")
    assert "now has the role admin" in flask_users(app, "promote", "ann").stdout
    assert "already has the role admin" in flask_users(app, "promote", "ann").stdout
    (row,) = json.loads(flask_users(app, "list", "--json").stdout)
    assert (row["username"], row["role"]) == ("ann", "admin")
    flask_users(app, "promote", "ANN@example.com", "--viewer")
    assert role(app) == "viewer"
    flask_users(app, "demote", "ann")
    assert role(app) == "user"
    missing = flask_users(app, "promote", "nobody")
    assert missing.exit_code == 2
    assert audited(app) == [
        ("user_created", "user"),
        ("role_changed", "user -> admin"),
        ("role_changed", "admin -> viewer"),
        ("role_changed", "viewer -> user"),
    ]


def role(app: Flask) -> str:
    with app.app_context():
        return db.session.scalars(select(User.role)).one()


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_a_test_mail_closes_the_breaker_although_a_worker_is_probing(
    app: Flask, environ: dict[str, str], smtp: Server
) -> None:
    with app.app_context():
        circuit_breaker.trip("connect: refused")
        db.session.commit()
    with closing(psycopg.connect(environ["DATABASE_URL"])) as probing:
        probing.execute("SELECT 1 FROM mail_breaker FOR UPDATE")
        ended = threading.Timer(0.3, probing.commit)
        smtp.actions["dot"] = lambda _connection: ended.start()
        result = flask_mail(app, "test", "ops@example.com")
        ended.join()
    assert "works again" in result.stderr
    assert "is down" not in result.stderr
