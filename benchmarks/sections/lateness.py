"""How long after an email is due the mail server has it."""

from __future__ import annotations

import time
from contextlib import closing

from flask import Flask
from sqlalchemy import select

from benchmarks import rows
from benchmarks.contest import CONSUMER
from benchmarks.measure import percentile, wait_until
from benchmarks.report import Report
from benchmarks.stage import Stage, app_of, forget
from harness.processes import Process
from harness.smtp_server import Action, Server, hang
from webapp.accounts import signup
from webapp.accounts.identifiers import email_addresses
from webapp.db.base import db
from webapp.delivery import tasks
from webapp.outbox.outgoing_email import OutgoingEmail

DELAY = 2
IDLE_MAILS = 60
IDLE_SECONDS = 0.33
BUSY_RATE = 50
BUSY_SECONDS = 15
TROUBLED = 30


def run(stage: Stage, report: Report) -> None:
    late: dict[str, list[float]] = {}
    for name, count, pause in (
        ("idle", IDLE_MAILS, IDLE_SECONDS),
        (f"{BUSY_RATE} signups a second", BUSY_RATE * BUSY_SECONDS, 1 / BUSY_RATE),
    ):
        with (
            stage.servers(VERIFY_EMAIL_DELAY=str(DELAY)) as settings,
            Process(*CONSUMER, environ=stage.environ(settings)) as worker,
            closing(Signups(app_of(settings))) as signups,
        ):
            worker.wait_for_event("worker_started")
            signups.sign_up(count, pause)
            late[name] = signups.lateness(count)
    for name, action in (("refused", "550 5.1.1 no such user"), ("hanging", hang)):
        late[f"3 beside {TROUBLED} {name}"] = beside_troubled(stage, action)
    report.say(
        f"Seconds from due to settled, which is a moment after the server's 250; one consumer; due {DELAY} s after the",
        "signup. The signups are committed and hinted as the web does, but without its hashes.",
        "",
    )
    report.table(
        ["system", "mails", "p50 s", "p99 s", "most s"],
        [
            [
                name,
                len(values),
                f"{percentile(values, 0.5):.3f}",
                f"{percentile(values, 0.99):.3f}",
                f"{max(values):.3f}",
            ]
            for name, values in late.items()
        ],
    )
    idle, busy, *beside = late.values()
    report.target("idle, p50 s", percentile(idle, 0.5), "at most", 0.2)
    report.target("idle, p99 s", percentile(idle, 0.99), "at most", 0.4)
    report.target(f"{BUSY_RATE} signups a second, p99 s", percentile(busy, 0.99), "at most", 1)
    report.target(f"beside {TROUBLED} that are refused or hang, most s", max(map(max, beside)), "at most", 2)


def beside_troubled(stage: Stage, action: Action) -> list[float]:
    """Return how late emails are that were promised after many others that the server refuses or hangs on."""
    with Server() as server, stage.servers(VERIFY_EMAIL_DELAY=str(DELAY), MAIL_PORT=str(server.port)) as settings:
        server.actions["RCPT"] = lambda connection: (
            (action(connection) if callable(action) else action)
            if connection.recipients[-1].startswith("troubled")
            else None
        )
        with (
            Process(*CONSUMER, environ=stage.environ(settings)) as worker,
            closing(Signups(app_of(settings))) as signups,
        ):
            worker.wait_for_event("worker_started")
            # Send one first, so that the worker knows how long an email usually takes.
            signups.sign_up(1, 0, "early")
            server.wait_for("early0@example.com")
            signups.sign_up(TROUBLED, 0, "troubled")
            time.sleep(DELAY)
            signups.sign_up(3, 0)
            return signups.lateness(4)


class Signups:
    def __init__(self, app: Flask) -> None:
        self.app = app
        self.reader = rows.reader({"DATABASE_URL": app.config["DATABASE_URL"].replace("+psycopg", "")})

    def sign_up(self, count: int, pause: float, prefix: str = "person") -> None:
        begun = time.monotonic()
        for number in range(count):
            with self.app.app_context():
                _signup_id, email_id = signup.sign_up(
                    username=f"{prefix}{number}",
                    full_name="",
                    address=email_addresses.parse_address(f"{prefix}{number}@example.com"),
                    password_hash=rows.NO_PASSWORD,
                    locale="en",
                )
                if email_id is not None:
                    tasks.deliver_later(email_id, delay=signup.delay())
            time.sleep(max(0, begun + (number + 1) * pause - time.monotonic()))

    def lateness(self, count: int) -> list[float]:
        wait_until(lambda: rows.have_sent(self.reader, count), f"{count} mails were not sent")
        with self.app.app_context():
            sent = db.session.execute(select(OutgoingEmail.sent_at, OutgoingEmail.next_attempt_at)).all()
            return [(row.sent_at - row.next_attempt_at).total_seconds() for row in sent if row.sent_at]

    def close(self) -> None:
        self.reader.close()
        forget(self.app)
