"""Processes that freeze in the middle of a transaction, holding locks: others continue, and so do they once thawed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from flask import Flask
from sqlalchemy import func, select, text, update

from harness.processes import Freezer, Process, consumer, flask, wait_until
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.factories import get, make_signup, only_user, travel
from tests.system.test_journey import Environ, website
from webapp.accounts.users import User
from webapp.counters import TotalUntil
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail

# SQLite has one writer at a time, on one machine, and no server to end its transaction.
pytestmark = [pytest.mark.parametrize("backend", ["servers"], indirect=True), pytest.mark.timeout(240)]

# Others must have sent what was due this long after a freeze: we promise 30 s, but this machine may be busy.
OTHERS_SENT = 60


@pytest.fixture
def freezer(tmp_path: Path) -> Freezer:
    return Freezer(tmp_path)


@pytest.fixture
def environ_of_processes(process_environ: Environ) -> Environ:
    return process_environ | {"VERIFY_EMAIL_DELAY": "0", "LOG_FORMAT": "json", "MAIL_TIMEOUT": "2"}


@contextmanager
def frozen(process: Process, freezer: Freezer) -> Iterator[str]:
    """Wait until it is frozen; thaw it at the end."""
    wait_until(lambda: freezer.frozen_at, "it did not freeze", 60)
    try:
        yield freezer.frozen_at or ""
    finally:
        os.killpg(process.popen.pid, signal.SIGCONT)


def all_sent(app: Flask) -> Callable[[], bool]:
    def look() -> bool:
        with app.app_context():
            unsent = select(func.count()).where(OutgoingEmail.status.in_(["queued", "sending"]))
            return not db.session.scalar(unsent)

    return look


def greylist_once(smtp: Server) -> None:
    smtp.actions["RCPT"] = "451 4.2.0 greylisted"


@pytest.mark.parametrize(
    ("like", "refused"),
    [
        (r"^WITH first AS", False),
        (r"FROM verify_emails", False),
        (r"pg_(try_)?advisory_xact_lock", False),
        (r"^INSERT INTO delivery_attempts", True),
        (r"^UPDATE outgoing_emails SET status=", True),
    ],
    ids=["claim", "proofs", "budget", "attempt", "release"],
)
def test_a_consumer_frozen_amid_a_transaction_holds_up_no_other(
    app: Flask, environ_of_processes: Environ, smtp: Server, freezer: Freezer, like: str, *, refused: bool
) -> None:
    if refused:
        greylist_once(smtp)
    with consumer(environ_of_processes | freezer.environ) as one:
        one.wait_for_event("worker_started")
        freezer.freeze_at(like)
        for n in range(6):
            make_signup(app, username=f"mick{n}", address=f"mick{n}@example.com")
        with frozen(one, freezer):
            smtp.actions.clear()
            with app.app_context():
                # Whatever was refused is due again, unless somebody holds it.
                mine = (
                    select(OutgoingEmail.id).where(OutgoingEmail.status == "queued").with_for_update(skip_locked=True)
                )
                due = update(OutgoingEmail).where(OutgoingEmail.id.in_(mine))
                db.session.execute(due.values(next_attempt_at=func.statement_timestamp()))
                db.session.commit()
            with consumer(environ_of_processes) as two:
                two.wait_for_event("worker_started")
                late = make_signup(app, username="late", address="late@example.com")
                wait_until(all_sent(app), "the other one sent not all", OTHERS_SENT)
                assert get(app, late).status == "sent"
                assert not two.events("process task failed")
        # Once thawed, it works again.
        last = make_signup(app, username="last", address="last@example.com")
        wait_until(lambda: get(app, last).status == "sent", "the thawed one sends nothing", 60)
        assert one.stop() == 0


def test_a_consumer_frozen_while_it_counts_holds_up_no_other(
    app: Flask, environ_of_processes: Environ, smtp: Server, freezer: Freezer
) -> None:
    with app.app_context():
        db.session.execute(update(TotalUntil).values(until=text("now() - interval '1 hour'")))
        db.session.commit()
    freezer.freeze_at("advisory")
    with (
        consumer(environ_of_processes | freezer.environ) as one,
        frozen(one, freezer),
        consumer(environ_of_processes) as two,
    ):
        two.wait_for_event("worker_started")
        make_signup(app)
        smtp.wait_for("mick@example.com", seconds=OTHERS_SENT)
        # The frozen process's lock ends with its transaction: then another one counts.
        wait_until(lambda: not behind(app), "nobody counted", OTHERS_SENT)
        assert not two.events("relay_failed")


def behind(app: Flask) -> bool:
    with app.app_context():
        oldest = select(func.min(TotalUntil.until) < text("now() - interval '30 minutes'"))
        return bool(db.session.scalar(oldest))


@pytest.mark.total("500/day")
def test_near_a_limit_a_consumer_frozen_amid_its_claim_holds_up_no_other(
    app: Flask, environ_of_processes: Environ, smtp: Server, freezer: Freezer
) -> None:
    environ = environ_of_processes | {"MAIL_LIMIT_TOTAL": "500/day"}
    with consumer(environ | freezer.environ) as one:
        one.wait_for_event("worker_started")
        freezer.freeze_at("^WITH first AS")
        make_signup(app)
        with frozen(one, freezer), consumer(environ) as two:
            two.wait_for_event("worker_started")
            smtp.wait_for("mick@example.com", seconds=OTHERS_SENT)


def test_a_web_process_frozen_amid_a_confirmation_holds_up_no_other(
    app: Flask, environ_of_processes: Environ, smtp: Server, freezer: Freezer, send_due: Callable[[], None]
) -> None:
    environ = environ_of_processes | {"WEB_CONCURRENCY": "1"}
    make_signup(app)
    send_due()
    (mail,) = smtp.mails
    path = "/verify/" + mail.link.partition("/verify/")[2]
    with website(environ | freezer.environ) as one, website(environ) as two:
        freezer.freeze_at("advisory")
        assert not confirm(Visitor(one), path)
        assert freezer.frozen_at
        wait_until(lambda: confirm(Visitor(two), path), "nobody else could confirm", OTHERS_SENT)
    assert only_user(app).is_email_verified


def confirm(visitor: Visitor, path: str) -> bool:
    """Follow the link with a new password; return whether it was changed."""
    visitor.http.timeout = httpx.Timeout(15)
    try:
        visitor.open(path)
        visitor.submit("/verify", new_password="another battery staple")
    except httpx.TimeoutException:
        return False
    return visitor.page.status_code == 200


@pytest.mark.parametrize("like", ["UPDATE outgoing_emails SET", "^INSERT INTO audit_events"])
def test_a_command_frozen_with_a_mail_in_its_hands_keeps_it_from_nobody(
    app: Flask, environ_of_processes: Environ, smtp: Server, freezer: Freezer, like: str
) -> None:
    email_id = make_signup(app)
    freezer.freeze_at(like)
    with flask(environ_of_processes | freezer.environ, "mail", "cancel", "--yes", str(email_id)) as command:
        with frozen(command, freezer), consumer(environ_of_processes):
            smtp.wait_for("mick@example.com", seconds=OTHERS_SENT)
        assert command.popen.wait(30) == 3
        assert "the database isn't responding: terminating connection due to idle-in-transaction timeout" in command.log
        assert "Traceback" not in command.log


@pytest.mark.parametrize("like", ["^SELECT users.id", "^DELETE FROM users"])
def test_what_a_frozen_prune_holds_is_forgotten_by_another(
    app: Flask, environ_of_processes: Environ, freezer: Freezer, like: str
) -> None:
    make_signup(app)
    travel(app, 8 * 86400.0)
    freezer.freeze_at(like)
    with (
        flask(environ_of_processes | freezer.environ, "mail", "prune", "--yes") as command,
        frozen(command, freezer),
    ):

        def is_forgotten() -> bool:
            app.test_cli_runner().invoke(args=["mail", "prune", "--yes"])
            with app.app_context():
                return not db.session.scalar(select(func.count()).select_from(User))

        wait_until(is_forgotten, "it was kept", OTHERS_SENT)
