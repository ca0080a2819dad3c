"""The embedded default, SQLite and a queue in a file, compared with PostgreSQL and Redis; and eight writers at once."""

from __future__ import annotations

import time
from contextlib import closing

from benchmarks import contest
from benchmarks.client import Browser, in_parallel
from benchmarks.contest import CONSUMER, Ours, Result
from benchmarks.measure import spending
from benchmarks.report import Report
from benchmarks.stage import Stage
from harness.processes import Process

MAILS = 400
ROUNDS = 2
WRITERS = 8
TIMES = 30

EMBEDDED, SERVERS = "SQLite", "PostgreSQL, Redis"


def run(stage: Stage, report: Report) -> None:
    delivery: dict[str, Result] = {}
    signups: dict[str, tuple[float, float]] = {}
    locked = 0
    for name, backend in ((EMBEDDED, stage.embedded), (SERVERS, stage.servers)):
        with backend() as settings:
            with closing(Ours(settings)) as ours:
                delivery[name] = contest.run(stage, ours, mails=MAILS, rounds=ROUNDS, warm_up=50)
            rate, cpu, complaints = write(stage, settings)
            signups[name] = (rate, cpu)
            locked += complaints
    report.say(
        f"One consumer × 4, median of {ROUNDS} rounds of {MAILS} mails; then {WRITERS} web processes with a client",
        f"each, {WRITERS * TIMES} signups, while the consumer sends.",
        "",
    )
    report.table(
        ["backend", "mails/s", "worker CPU ms a mail", "signups/s", "web CPU ms a signup"],
        [[name, result.rate, result.cpu, *signups[name]] for name, result in delivery.items()],
    )
    mails = delivery[EMBEDDED].rate / delivery[SERVERS].rate
    report.target("mails a second, of the servers'", mails, "at least", 0.5)
    report.target("signups a second, of the servers'", signups[EMBEDDED][0] / signups[SERVERS][0], "at least", 0.5)
    report.target(f"lines about a locked database, {WRITERS} writers and a consumer", locked, "at most", 0)


def write(stage: Stage, settings: dict[str, str]) -> tuple[float, float, int]:
    """Return signups a second, CPU milliseconds per signup, and how often a lock is mentioned in the log."""
    settings = {**settings, "WEB_CONCURRENCY": str(WRITERS), "VERIFY_EMAIL_DELAY": "0"}
    with stage.web(settings) as (web, port), Process(*CONSUMER, environ=stage.environ(settings)) as consumer:
        browsers = [Browser(port) for _ in range(WRITERS)]
        for browser in browsers:
            browser.open("/signup")
        begun = time.perf_counter()
        with spending(web.popen.pid) as spent:
            in_parallel(browsers, TIMES, Browser.sign_up)
        seconds = time.perf_counter() - begun
        locked = sum(log.lower().count("database is locked") for log in (web.log, consumer.log))
    return WRITERS * TIMES / seconds, 1000 * spent.cpu / (WRITERS * TIMES), locked
