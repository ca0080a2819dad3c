"""`flask users`, the commands that help people: they call the same functions as the pages."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select

from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.accounts.test_email_change import is_signed_in, sign_in
from tests.accounts.test_locked import of
from tests.test_operations import flask_users
from webapp.audit import AuditEvent
from webapp.db.base import db

Send = Callable[[], None]


def actors(app: Flask) -> list[tuple[str, str | None]]:
    with app.app_context():
        found = db.session.scalars(select(AuditEvent).where(AuditEvent.actor.is_not(None)).order_by(AuditEvent.id))
        return [(event.action, event.actor) for event in found]


def test_a_person_is_found_shown_and_helped(visitor: Visitor, app: Flask, send_due: Send, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    visitor.sign_up(full_name="Mick Müller")
    send_due()
    smtp.actions.clear()
    (row,) = json.loads(flask_users(app, "find", "mül", "--json").stdout)
    assert (row["username"], row["email"], row["state"]) == ("mick19", "mick@example.com", "pending")
    assert flask_users(app, "find", "nobody").exit_code == 1
    shown = flask_users(app, "show", str(row["id"]))
    assert "state\tpending" in shown.stdout
    assert "no such user" in shown.stdout
    story = json.loads(flask_users(app, "show", "MICK@example.com", "--json").stdout)
    assert [mail["status"] for mail in story["emails"]] == ["dead"]
    assert [event["action"] for event in story["events"]] == ["signed_up"]
    assert flask_users(app, "resend", "mick19").exit_code == 0
    again = flask_users(app, "resend", "mick19")
    assert again.exit_code == 1
    assert "already on its way" in again.stderr
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"
    needless = flask_users(app, "resend", "mick19")
    assert (needless.exit_code, needless.stderr) == (1, "nothing to resend: the account is verified\n")


def test_an_account_is_locked_unlocked_signed_out_exported_and_deleted(
    member: Visitor, app: Flask, send_due: Send, smtp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATOR", "ann")
    assert flask_users(app, "lock", "mick19", input="n\n").exit_code == 1
    assert is_signed_in(member)
    assert flask_users(app, "lock", "mick19", "--yes").exit_code == 0
    assert not is_signed_in(member)
    assert not sign_in(member)
    assert flask_users(app, "lock", "mick19", "--yes").exit_code == 1
    assert flask_users(app, "unlock", "mick19").exit_code == 0
    assert flask_users(app, "unlock", "mick19").exit_code == 1
    assert sign_in(member)
    assert flask_users(app, "end-sessions", "mick19").stdout == "sessions ended: 1\n"
    assert flask_users(app, "end-sessions", "mick19").exit_code == 1
    kept = json.loads(flask_users(app, "export", "mick19").stdout)
    assert kept["account"]["username"] == "mick19"
    assert "argon2" not in json.dumps(kept)
    assert flask_users(app, "delete", "mick19", "--yes").exit_code == 0
    assert flask_users(app, "show", "mick19").exit_code == 2
    send_due()
    assert "We deleted the Acme account of" in smtp.mails[-1].text
    done = ["locked", "unlocked", "sessions_ended", "exported", "account_deleted"]
    assert actors(app) == [(action, "ann") for action in done]


def test_a_name_that_means_several_people_is_refused_with_their_numbers(
    visitor: Visitor, another_visitor: Visitor, app: Flask
) -> None:
    visitor.sign_up(username="ann")
    another_visitor.sign_up(username="bob")
    several = flask_users(app, "lock", "mick@example.com", "--yes")
    assert several.exit_code == 2
    for name in ("ann", "bob"):
        assert f"{of(app, name).id} ({name}, mick@example.com, pending)" in several.stderr
    assert flask_users(app, "lock", str(of(app, "bob").id), "--yes").exit_code == 0
    assert of(app, "ann").locked_at is None


def test_without_operator_the_login_name_is_noted_and_no_host(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPERATOR", raising=False)
    monkeypatch.setenv("LOGNAME", "zoe")
    flask_users(app, "create", "ann@example.com", "--generate")
    assert actors(app) == [("user_created", "zoe")]
