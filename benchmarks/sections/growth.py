"""What a million old emails cost, compared with a thousand: claims, the relay's turns, operator pages and metrics."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from benchmarks import history
from benchmarks.client import PASSWORD
from benchmarks.measure import Timer
from benchmarks.report import Report
from benchmarks.stage import Stage, app_of, forget
from webapp import counters
from webapp.accounts import passwords, roles
from webapp.accounts.identifiers import email_addresses
from webapp.db.base import db
from webapp.delivery import relay
from webapp.outbox import claims
from webapp.outbox.outgoing_email import OutgoingEmail

SMALL, LARGE = 1_000, 1_000_000
TIMES = 100
PAGE_TIMES = 15
PLANS = Path(__file__).parent.parent / "plans.txt"


def run(stage: Stage, report: Report) -> None:
    timers: dict[str, tuple[Timer, Timer]] = {}
    with ExitStack() as stack:
        apps = []
        for size in (SMALL, LARGE):
            # A page that takes too long should be measured, not refused.
            app = app_of(stack.enter_context(stage.servers(DATABASE_TIMEOUT="60")))
            stack.callback(forget, app)
            history.write(app, size)
            apps.append(app)
        small, large = (operations(app) for app in apps)
        for name, in_small in small.items():
            timers[name] = (Timer(), Timer())
            times = PAGE_TIMES if name.startswith("/") else TIMES
            in_small()
            large[name]()
            # In turn: the machine's speed varies over time.
            for _ in range(times):
                timers[name][0].run(in_small)
                timers[name][1].run(large[name])
        if stage.wants_plans:
            write_plans(apps[1], large)
            report.say(f"Query plans at {LARGE:,} rows: {PLANS.name}.", "")
    report.say("Medians in milliseconds, in this process: no web server, no network but to the database.", "")
    report.table(
        ["operation", f"{SMALL:,} rows", f"{LARGE:,} rows", "ratio"],
        [[name, few.median, many.median, many.median / few.median] for name, (few, many) in timers.items()],
    )
    for name, (few, many) in timers.items():
        report.target(name, many.median / few.median, "at most", 1.5)


def operations(app: Flask) -> dict[str, Callable[[], object]]:
    """Return the operations that may grow with the rows, by name."""
    ours = relay.Relay()

    def claim() -> None:
        with app.app_context():
            if len(claims.claim("benchmark")) != 1:
                raise AssertionError("nothing is due")
            db.session.rollback()

    def turn() -> None:
        with app.app_context():
            ours.turn()

    # The first turns hint what is overdue and count what ended, so that the measured turns are typical ones.
    for _ in range(1 + history.DUE // relay.BATCH):
        turn()
    with app.app_context():
        while counters.fold():
            pass
    client = operator(app)
    with app.app_context():
        email_id = db.session.scalars(select(OutgoingEmail.id).where(OutgoingEmail.status == "dead").limit(1)).one()
    paths = [
        "/ops",
        "/ops?span=month",
        "/ops/mails",
        "/ops/mails?status=sent",
        "/ops/mails?status=dead&code=550",
        "/ops/mails?address=n5@example.com",
        f"/ops/mails/{email_id}",
        "/ops/dead",
        "/ops/workers",
        "/metrics",
    ]
    visits = {name_of(path): visit(client, path) for path in paths}
    return {"claim": claim, "relay's turn": turn, **visits}


def name_of(path: str) -> str:
    return re.sub(r"[0-9a-f-]{36}", "…", path)


def visit(client: FlaskClient, path: str) -> Callable[[], None]:
    def open_page() -> None:
        response = client.get(path)
        if response.status_code != 200:
            raise AssertionError(f"GET {path}: {response.status_code}")

    return open_page


def operator(app: Flask) -> FlaskClient:
    """Return the browser of a signed-in admin."""
    with app.app_context():
        address = email_addresses.parse_address("operator@example.com")
        roles.create(address, username="operator", password_hash=passwords.hash(PASSWORD), role="admin")
    client = app.test_client()
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', client.get("/login").text)
    fields = {"csrf_token": found[1] if found else "", "identifier": "operator", "password": PASSWORD}
    client.post("/login", data=fields)
    return client


def write_plans(app: Flask, operations: dict[str, Callable[[], object]]) -> None:
    parts = []
    for name, operation in operations.items():
        with history.statements(app) as asked:
            operation()
        plans = [f"{statement}\n\n{history.plan(app, statement, asked[statement])}" for statement in asked]
        parts.append("\n\n".join([f"=== {name}", *plans]))
    PLANS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
