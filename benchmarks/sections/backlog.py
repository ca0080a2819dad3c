"""Draining a large backlog without hints: as fast as a small one, and with little memory in Redis."""

from __future__ import annotations

import time
from contextlib import closing

import psycopg
from redis import Redis

from benchmarks import contest, rows
from benchmarks.contest import CONSUMER, Ours
from benchmarks.report import Report
from benchmarks.stage import Stage
from harness.processes import Process
from harness.usage import resident

STEADY = 1_500
DUE = 100_000
# The rest would drain like this part.
SECONDS = 30


def run(stage: Stage, report: Report) -> None:
    with stage.servers() as settings, closing(Ours(settings)) as ours:
        with Process(*CONSUMER, environ=stage.environ(settings)) as worker:
            rows.promise(ours.app, 100)
            contest.await_sent(ours, 100)
            rows.promise(ours.app, STEADY)
            begun = time.perf_counter()
            contest.await_sent(ours, 100 + STEADY)
            steady = STEADY / (time.perf_counter() - begun)
            steady_memory = resident(worker.popen.pid)
            worker.stop()
        rows.promise(ours.app, DUE)
        with psycopg.connect(settings["DATABASE_URL"], autocommit=True) as database:
            database.execute("VACUUM ANALYZE")
        with Process(*CONSUMER, environ=stage.environ(settings)) as worker:
            contest.await_sent(ours, 100 + STEADY + 1)
            sent, begun, held = rows.count_sent(ours.reader), time.perf_counter(), 0
            with Redis.from_url(stage.valkey.url) as redis:
                while time.perf_counter() < begun + SECONDS and not ours.has_sent(100 + STEADY + DUE):
                    held = max(held, redis.info("memory")["used_memory"])
                    time.sleep(1)
            drained = rows.count_sent(ours.reader) - sent
            rate = drained / (time.perf_counter() - begun)
            memory = resident(worker.popen.pid)
            worker.stop()
    report.say("One consumer × 4; the relay finds the mails, since nobody hinted them.", "")
    report.table(
        ["backlog", "mails/s", "of the steady rate", "most in Redis, MB", "consumer, MB"],
        [
            [f"{STEADY:,}", steady, 1, "", steady_memory / 1e6],
            [f"{DUE:,} ({drained:,} of them in {SECONDS} s)", rate, rate / steady, held / 1e6, memory / 1e6],
        ],
    )
    report.target("a large backlog's rate, of the steady one", rate / steady, "at least", 0.95)
    report.target("a consumer's resident memory after that, MB", memory / 1e6, "at most", 110)
