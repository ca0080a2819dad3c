"""Commands that operators type, and what they print."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import select, update

from harness.processes import Process, flask, run_flask, wait_until
from harness.smtp_server import Server, hang
from tests.factories import attempts, change, get, make_signup, work
from tests.system.test_journey import Environ
from webapp.accounts import signup
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import circuit_breaker, heartbeats


def flask_mail(app: Flask, *arguments: str, **options: Any) -> Result:
    return app.test_cli_runner().invoke(args=["mail", *arguments], **options)


def findings(app: Flask) -> list[str]:
    result = flask_mail(app, "doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (1 if report["findings"] else 0)
    assert not (report["findings"] and report["is_well"])
    for finding in report["findings"]:
        # Each one says what to type.
        assert finding["command"].startswith(("flask mail ", "huey_consumer "))
    return [finding["check"] for finding in report["findings"]]


def refused(app: Flask, smtp: Server, name: str = "mick19") -> uuid.UUID:
    """An email that died of a 550."""
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    email_id = make_signup(app, username=name, address=f"{name}@example.com")
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    change(app, email_id, next_attempt_at=db_now(-5))
    work(app)
    assert get(app, email_id).status == "dead"
    smtp.actions.clear()
    return email_id


def test_stats_count_by_state(app: Flask, smtp: Server) -> None:
    refused(app, smtp)
    make_signup(app, username="ann", address="ann@example.com")
    stats = json.loads(flask_mail(app, "stats", "--json").stdout)
    assert stats["by_status"] == {"queued": 1, "sending": 0, "sent": 0, "dead": 1, "canceled": 0}
    assert stats["due"] == 1
    assert stats["workers"] == 1
    assert "dead\t1" in flask_mail(app, "stats").stdout


def test_list_filters_and_pages(app: Flask, smtp: Server) -> None:
    dead = refused(app, smtp)
    ids = {str(make_signup(app, username=f"ann{n}", address=f"ann{n}@example.com")) for n in range(3)}
    assert [row["id"] for row in rows(app, "--status", "dead")] == [str(dead)]
    assert [row["id"] for row in rows(app, "--code", "550")] == [str(dead)]
    assert [row["to_address"] for row in rows(app, "--address", "ANN1@example.com")] == ["ann1@example.com"]
    first = rows(app, "--status", "queued", "--limit", "2")
    second = rows(app, "--status", "queued", "--limit", "2", "--before", first[-1]["id"])
    assert {row["id"] for row in first + second} == ids
    assert len(first) == 2
    # In a pipe: one tab-separated line each.
    lines = flask_mail(app, "list", "--status", "dead").stdout.splitlines()
    assert lines[0].split("\t")[:2] == ["id", "status"]
    assert lines[1].split("\t")[:2] == [str(dead), "dead"]


def rows(app: Flask, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(flask_mail(app, "list", "--json", *arguments).stdout)
    return found


def test_show_tells_a_mails_story_by_the_beginning_of_its_id(app: Flask, smtp: Server) -> None:
    email_id = refused(app, smtp)
    shown = flask_mail(app, "show", str(email_id)[:8]).stdout
    for words in ("dead", "550", "no such user", "recipient", "mick19@example.com"):
        assert words in shown
    assert "/verify/" not in shown
    story = json.loads(flask_mail(app, "show", str(email_id), "--json").stdout)
    assert [attempt["code"] for attempt in story["delivery_attempts"]] == [550]
    assert "lease_token" not in story


@pytest.mark.parametrize("argument", ["0000", "not an id", ""])
def test_an_unknown_mail_is_told_and_exits_with_2(app: Flask, argument: str) -> None:
    for command in ("show", "retry"):
        result = flask_mail(app, command, argument)
        assert result.exit_code == 2
        assert "id" in result.stderr


def test_a_dead_mail_that_is_retried_is_sent_with_its_message_id(app: Flask, smtp: Server) -> None:
    email_id = refused(app, smtp)
    before = get(app, email_id).message_id
    result = flask_mail(app, "retry", str(email_id))
    assert (result.exit_code, result.stdout) == (0, "revived 1, made due 0\n")
    work(app)
    assert get(app, email_id).status == "sent"
    assert smtp.mails[0].message_id == before


def test_retry_by_answer_and_of_what_waits(app: Flask, smtp: Server) -> None:
    dead = refused(app, smtp)
    waiting = make_signup(app, username="ann", address="ann@example.com", due=False)
    assert flask_mail(app, "retry", str(waiting)).stdout == "revived 0, made due 1\n"
    assert flask_mail(app, "retry", "--code", "550").stdout == "revived 1, made due 0\n"
    work(app)
    assert [get(app, email_id).status for email_id in (dead, waiting)] == ["sent", "sent"]
    result = flask_mail(app, "retry", "--dead")
    assert result.exit_code == 1
    assert "nothing to retry" in result.stderr
    assert flask_mail(app, "retry").exit_code == 2


def test_one_turn_of_the_relay_sends_what_is_due_without_worker_and_queue(app: Flask, smtp: Server) -> None:
    result = flask_mail(app, "relay", "--once")
    assert (result.exit_code, result.stdout) == (0, "nothing was sent\n")
    email_id = make_signup(app)
    result = flask_mail(app, "relay", "--once")
    assert (result.exit_code, result.stdout) == (0, "sent 1\n")
    assert get(app, email_id).status == "sent"
    assert len(smtp.mails) == 1
    smtp.stop()
    make_signup(app, username="ann", address="ann@example.com")
    result = flask_mail(app, "relay", "--once")
    assert result.exit_code == 1
    assert "the mail server is down" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_turn_of_the_relay_that_is_interrupted_gives_its_mail_back(
    app: Flask, process_environ: Environ, smtp: Server, number: signal.Signals
) -> None:
    smtp.actions["RCPT"] = hang
    email_id = make_signup(app)
    with flask(process_environ | {"MAIL_TIMEOUT": "60"}, "mail", "relay", "--once") as turn:
        wait_until(lambda: smtp.connections, "it did not connect")
        turn.popen.send_signal(number)
        assert turn.popen.wait(30) == 1
        assert "returned 1" in turn.log
    row = get(app, email_id)
    assert (row.status, row.attempts, row.lease_token) == ("queued", 0, None)


def test_of_dead_mails_that_keep_one_promise_retry_revives_the_newest(app: Flask, smtp: Server) -> None:
    first = refused(app, smtp)
    with app.app_context():
        again = signup.resend(db.session.scalars(select(User)).one())
    assert again
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    change(app, again, next_attempt_at=db_now(-5))
    work(app)
    smtp.actions.clear()
    assert flask_mail(app, "retry", "--dead").stdout == "revived 1, made due 0\n"
    work(app)
    assert [get(app, email_id).status for email_id in (first, again)] == ["dead", "sent"]
    assert len(smtp.mails) == 1


def test_workers_are_listed_with_what_they_hold(app: Flask) -> None:
    assert "no worker is alive" in flask_mail(app, "workers").stderr
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    (worker,) = json.loads(flask_mail(app, "workers", "--json").stdout)
    assert (worker["name"], worker["is_alive"], worker["sending"]) == (heartbeats.NAME, True, 0)


def test_the_doctor_says_that_all_is_well(app: Flask, smtp: Server) -> None:
    refused(app, smtp)
    make_signup(app, username="ann", address="ann@example.com")
    assert flask_mail(app, "relay", "--once").exit_code == 0
    result = flask_mail(app, "doctor")
    assert result.exit_code == 0
    told = "note: 1 email is dead, most recently: 550 5.1.1 no such user: flask mail list --status dead"
    assert result.stdout == f"all is well\n{told}\n"


def test_the_doctor_finds_what_is_broken(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    assert findings(app) == ["no_worker"]
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()
    assert findings(app) == []
    change(app, email_id, next_attempt_at=db_now(-61))
    assert findings(app) == ["overdue"]
    with app.app_context():
        circuit_breaker.trip("connect: refused")
        db.session.execute(update(circuit_breaker.MailBreaker).values(opened_at=db_now(-61)))
        db.session.commit()
    # Nothing counts as overdue while the mail server is down: that is the problem.
    assert findings(app) == ["breaker_open"]
    with app.app_context():
        circuit_breaker.reset()
        db.session.commit()
    change(app, email_id, status="sending", lease_token=uuid.uuid4(), lease_until=db_now(-31))
    assert findings(app) == ["lease_expired"]
    change(app, email_id, lease_until=None)
    assert findings(app) == ["lease_inconsistent"]
    change(app, email_id, status="sent", lease_token=None, lease_until=None)
    assert attempts(app, email_id) == []
    assert findings(app) == ["sent_without_250"]
    with app.app_context():
        db.session.execute(update(VerifyEmail).values(used_at=db_now()))
        db.session.commit()
    assert findings(app) == ["sent_without_250", "verified_in_vain"]
    with app.app_context():
        db.session.execute(update(User).values(email_verified_at=db_now()))
        db.session.commit()
    assert findings(app) == ["sent_without_250", "verified_but_purged"]


def test_the_commands_work_in_a_process_of_their_own_and_print_only_json(app: Flask, process_environ: Environ) -> None:
    make_signup(app)
    for arguments, code in ((["doctor", "--json"], 1), (["stats", "--json"], 0), (["list", "--json"], 0)):
        done = run_flask(process_environ, "mail", *arguments)
        assert done.returncode == code, done.stderr
        assert json.loads(done.stdout)


def on_a_terminal(environ: Environ, *arguments: str) -> str:
    """Return what a command prints on a terminal of 80 columns."""
    ours, its = pty.openpty()
    # rich asks these for the terminal's size first.
    environ = environ | {"TERM": "xterm", "COLUMNS": "80"}
    with os.fdopen(its, "wb") as terminal, Path(os.devnull).open("wb") as nowhere:
        printing = Process.start(flask(environ, "mail", *arguments).command, environ, terminal, nowhere)
    shown = b""
    # Linux closes a terminal that nobody writes to any more with an error.
    with suppress(OSError):
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)
    assert printing.wait(60) == 0
    return shown.decode()


def test_on_a_terminal_a_list_fits_it_with_an_id_to_paste(app: Flask, process_environ: Environ, smtp: Server) -> None:
    email_id = refused(app, smtp)
    reply = "[bold]no[/bold] :smile: " + "and so on " * 20
    address = f"{'mick' * 15}@example.com"
    change(app, email_id, last_error=reply, to_address=address, created_at=db_now(-180))
    shown = on_a_terminal(process_environ, "list")
    assert "\x1b[1;31mdead" in shown
    heads, line = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert heads.split() == ["id", "status", "queued", "email", "to", "reason"]
    # The reason comes last, unchanged.
    assert re.fullmatch(r"[0-9a-f]{8} +dead +3 min ago +verify_email +mickm\w+… +550 \[bold\]no\[/.*…", line)
    assert len(line) <= 80
    assert flask_mail(app, "show", line.split()[0]).exit_code == 0
    wide = on_a_terminal(process_environ | {"NO_COLOR": "1"}, "list", "--wide")
    assert all(text in wide for text in (str(email_id), address, reply.strip()))
    assert "\x1b[3" not in wide
    assert "…" not in wide


def test_what_is_not_known_of_an_email_takes_no_line(app: Flask) -> None:
    email_id = make_signup(app)
    names = [line.partition("\t")[0] for line in flask_mail(app, "show", str(email_id)).stdout.splitlines()]
    assert "created_at" in names
    assert "sent_at" not in names
    assert "sent_at" in json.loads(flask_mail(app, "show", str(email_id), "--json").stdout)


def test_there_is_one_word_for_sending_again(app: Flask) -> None:
    listed = [line.split()[0] for line in flask_mail(app, "--help").stdout.splitlines() if line.startswith("  ")]
    assert "retry" in listed
    assert "revive" not in listed
    assert flask_mail(app, "revive", "--dead").exit_code == 2


@pytest.mark.parametrize(
    "url", ["postgresql://u@127.0.0.1:1/app", "sqlite:////nowhere/at/all/app.db"], ids=["postgres", "sqlite"]
)
def test_without_a_database_one_line_says_so(system_environ: Environ, url: str, tmp_path: Any) -> None:
    if url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/empty.db"
    environ = {"SECRET_KEY": "for-tests-only-0123456789", "PUBLIC_URL": "http://x.example", "MAIL_SERVER": "127.0.0.1"}
    done = run_flask({**system_environ, **environ, "DATABASE_URL": url}, "mail", "stats")
    assert done.returncode == 3
    assert done.stderr.startswith("the database isn't responding: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
