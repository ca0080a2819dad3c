"""What idle processes use, and how fast they start."""

from __future__ import annotations

import time
from contextlib import suppress

import psycopg

from benchmarks.client import Browser
from benchmarks.contest import CONSUMER
from benchmarks.measure import cpu_seconds, median, spending, wait_until
from benchmarks.report import Report
from benchmarks.stage import Stage
from harness.processes import BIN, Process, free_port
from harness.usage import resident, tree

STARTS = 3
IDLE_SECONDS = 20


def run(stage: Stage, report: Report) -> None:
    with stage.servers() as settings:
        web: list[tuple[float, float]] = []
        worker: list[tuple[float, float]] = []
        web_memory = 0
        for _ in range(STARTS):
            seconds, cpu, web_memory = start_web(stage, settings)
            web.append((seconds, cpu))
            with Process(*CONSUMER, environ=stage.environ(settings)) as consumer:
                begun = time.perf_counter()
                wait_until(lambda: bool(consumer.events("worker_started")), "the consumer did not start")
                worker.append((time.perf_counter() - begun, cpu_seconds(consumer.popen.pid)))
        with Process(*CONSUMER, environ=stage.environ(settings)) as consumer:
            consumer.wait_for_event("worker_started")
            # At the start all the relay's jobs are due at once.
            time.sleep(3)
            pid = consumer.popen.pid
            before = transactions(settings)
            with spending(pid) as idle:
                time.sleep(IDLE_SECONDS)
            asked = transactions(settings) - before
            memory = resident(pid)
        share = 100 * idle.cpu / idle.wall
    report.table(
        ["process", "start, s", "of it CPU", "idle, % of a core", "transactions/s", "resident, MB each"],
        [
            ["web, 2 processes", *started(web), "", "", web_memory / 1e6],
            ["consumer × 4", *started(worker), share, asked / idle.wall, memory / 1e6],
        ],
    )
    report.target("an idle consumer, % of a core", share, "at most", 1)
    report.target("start of the web, s", median([seconds for seconds, _ in web]), "at most", 1.5)
    report.target("start of a consumer, s", median([seconds for seconds, _ in worker]), "at most", 1.5)
    report.target("resident memory of a consumer, MB", memory / 1e6, "at most", 110)


def started(starts: list[tuple[float, float]]) -> list[str]:
    return [f"{median([start[part] for start in starts]):.2f}" for part in (0, 1)]


def start_web(stage: Stage, settings: dict[str, str]) -> tuple[float, float, int]:
    """Return seconds until it answers, its CPU seconds by then, and the resident bytes of one of its processes."""
    port = free_port()
    command = [str(BIN / "gunicorn"), "wsgi:app", "--bind", f"127.0.0.1:{port}"]
    begun = time.perf_counter()
    with Process(*command, environ=stage.environ(settings)) as web:
        wait_until(lambda: answers(port), "the web did not start")
        seconds = time.perf_counter() - begun
        return seconds, cpu_seconds(web.popen.pid), tree(web.popen.pid)[-1].memory_info().rss


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
