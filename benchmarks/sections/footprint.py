"""What the processes take when nothing happens, and how soon they are there."""

from __future__ import annotations

import time
from contextlib import suppress

import psycopg

from benchmarks.client import Browser
from benchmarks.contest import CONSUMER
from benchmarks.measure import median, resident, spending, tree, wait_until
from benchmarks.report import Report
from benchmarks.stage import Stage
from tests.processes import BIN, Process, free_port

STARTS = 3
IDLE_SECONDS = 20


def run(stage: Stage, report: Report) -> None:
    with stage.servers() as settings:
        web, worker = [], []
        for _ in range(STARTS):
            web.append(start_web(stage, settings))
            with Process(*CONSUMER, environ=stage.environ(settings)) as consumer:
                begun = time.perf_counter()
                wait_until(lambda: bool(consumer.events("worker_started")), "the consumer did not start")
                worker.append(time.perf_counter() - begun)
        with Process(*CONSUMER, environ=stage.environ(settings)) as consumer:
            consumer.wait_for_event("worker_started")
            # It begins with what is done once a minute.
            time.sleep(3)
            pid = consumer.popen.pid
            before = transactions(settings)
            with spending(pid) as idle:
                time.sleep(IDLE_SECONDS)
            asked = transactions(settings) - before
            memory = resident(pid)
        share = 100 * idle.cpu / idle.wall
    report.table(
        ["process", "start, s", "idle, % of a core", "transactions/s", "resident, MB each"],
        [
            ["web", f"{median([seconds for seconds, _ in web]):.2f}", "", "", median([mb for _, mb in web])],
            ["consumer × 4", f"{median(worker):.2f}", share, asked / idle.wall, memory / 1e6],
        ],
    )
    report.target("an idle consumer, % of a core", share, "at most", 1)
    report.target("start of the web, s", median([seconds for seconds, _ in web]), "at most", 1.5)
    report.target("start of a consumer, s", median(worker), "at most", 1.5)
    report.target("resident memory of a consumer, MB", memory / 1e6, "at most", 110)


def start_web(stage: Stage, settings: dict[str, str]) -> tuple[float, float]:
    """Return seconds until it answers, and the megabytes of one of its processes then."""
    port = free_port()
    command = [str(BIN / "gunicorn"), "wsgi:app", "--bind", f"127.0.0.1:{port}"]
    begun = time.perf_counter()
    with Process(*command, environ=stage.environ(settings)) as web:
        wait_until(lambda: answers(port), "the web did not start")
        seconds = time.perf_counter() - begun
        worker = tree(web.popen.pid)[-1]
        return seconds, worker.memory_info().rss / 1e6


def answers(port: int) -> bool:
    with suppress(OSError):
        Browser(port).open("/livez")
        return True
    return False


def transactions(settings: dict[str, str]) -> int:
    with psycopg.connect(settings["DATABASE_URL"], autocommit=True) as connection:
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        (count,) = connection.execute(query).fetchone() or (0,)
        return int(count)
