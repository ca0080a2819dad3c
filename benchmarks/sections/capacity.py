"""The cost of one signup, email included, to each part of the system, and what many signups and open pages need."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import psycopg
from redis import Redis

from benchmarks import rows
from benchmarks.client import Browser
from benchmarks.contest import CONSUMER
from benchmarks.measure import cpu_seconds, spending, wait_until
from benchmarks.report import Report
from benchmarks.stage import Stage
from harness.processes import Process
from webapp.pages.shared.mail_status import SENT_INTERVALS

SIGNUPS = 300
LOOKS = 300
PROGRESS = "/signup/sent/progress"
PAGES = 1000
HOUR = 3600
RATES = (1, 10, 1000)
RETENTION_SECONDS = 90 * 86400


def run(stage: Stage, report: Report) -> None:
    with (
        stage.servers(VERIFY_EMAIL_DELAY="1") as settings,
        stage.web(settings) as (web, port),
        Process(*CONSUMER, environ=stage.environ(settings)) as consumer,
        closing(rows.reader(settings)) as reader,
    ):
        consumer.wait_for_event("worker_started")
        browser = Browser(port)
        browser.open("/signup")

        def sign_up(count: int) -> None:
            sent = rows.count_sent(reader)
            for _ in range(count):
                browser.sign_up()
            wait_until(lambda: rows.have_sent(reader, sent + count), f"{count} mails were not sent")

        def look() -> Totals:
            return look_at(stage, settings, web, consumer)

        sign_up(50)
        before = look()
        sign_up(SIGNUPS)
        after = look()
        browser.sign_up(keep=True)
        wait_until(lambda: "Sent" in browser.open(PROGRESS), "the mail was not sent")
        with spending(web.popen.pid) as one:
            for _ in range(LOOKS):
                browser.open(PROGRESS)
    costs = {name: (value - before[name]) / SIGNUPS for name, value in after.items()}
    report.say(f"Of {SIGNUPS} signups one after the other, and their mails by one consumer: what each costs.", "")
    report.table(
        ["part", "a signup", *[f"{rate:,} a second" for rate in RATES]],
        [[UNITS[name].label, cost * UNITS[name].small, *needs(name, cost)] for name, cost in costs.items()],
    )
    look_costs, looks = one.cpu / LOOKS, looks_of_an_hour()
    report.say(
        "",
        f"An open page that waits for its email to be clicked looks {looks:.0f} times in its first hour, at",
        f"{1000 * look_costs:.1f} ms of web CPU a look. Nothing is asked while the page is hidden.",
        "",
    )
    cores = PAGES * looks / HOUR * look_costs
    report.target(f"{PAGES:,} open pages, opened within the last hour, cores", cores, "at most", 0.25)


def looks_of_an_hour() -> float:
    """Return how often a visible page asks for its email's status in the hour after that was sent."""
    looks = begun = 0.0
    for until, every in SENT_INTERVALS:
        looks += (min(until, HOUR) - begun) / every
        begun = min(until, HOUR)
    return looks


@dataclass(frozen=True)
class Unit:
    """How to print a cost: in `small` units for one signup, in `large` ones for many."""

    label: str
    small: float
    large: float
    suffix: str


Totals = dict[str, float]
UNITS = {
    "web": Unit("web, CPU ms", 1000, 1, "cores"),
    "consumer": Unit("consumer, CPU ms", 1000, 1, "cores"),
    "postgres": Unit("PostgreSQL, CPU ms", 1000, 1, "cores"),
    "redis": Unit("Redis, CPU ms", 1000, 1, "cores"),
    "commits": Unit("transactions", 1, 1, "/s"),
    "wal": Unit("WAL, kB", 1e-3, 1e-6, "MB/s"),
    "disk": Unit("tables and indexes, kB (90 days)", 1e-3, RETENTION_SECONDS * 1e-9, "GB"),
    "commands": Unit("Redis commands", 1, 1, "/s"),
}


def needs(name: str, cost: float) -> list[str]:
    unit = UNITS[name]
    return [f"{cost * rate * unit.large:,.2f} {unit.suffix}" for rate in RATES]


def look_at(stage: Stage, settings: dict[str, str], web: Process, consumer: Process) -> Totals:
    with (
        psycopg.connect(settings["DATABASE_URL"], autocommit=True) as database,
        Redis.from_url(stage.valkey.url) as redis,
    ):
        wal, disk, commits = database.execute(
            "SELECT pg_current_wal_lsn() - '0/0', pg_database_size(current_database()),"
            " (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())"
        ).fetchone() or (0, 0, 0)
        return {
            "web": cpu_seconds(web.popen.pid),
            "consumer": cpu_seconds(consumer.popen.pid),
            "postgres": cpu_seconds(stage.postgres_pid),
            "redis": cpu_seconds(stage.valkey.process.pid),
            "commits": float(commits),
            "wal": float(wal),
            "disk": float(disk),
            "commands": float(redis.info("stats")["total_commands_processed"]),
        }
