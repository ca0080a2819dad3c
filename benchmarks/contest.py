"""Contests between workers: each gets a filled queue, and we measure time and CPU until everything is sent."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import psycopg
from flask import Flask

from benchmarks import rows
from benchmarks.measure import cpu_seconds, median, wait_until
from benchmarks.stage import RIVALS_BIN, Stage, app_of, forget, run_rival
from harness.processes import BIN, Process
from webapp.emails import render
from webapp.extensions import huey
from webapp.outbox import kinds


@dataclass(frozen=True)
class Queue:
    """A rival: its module in benchmarks/rivals, and the command for each of its workers."""

    name: str
    module: str
    commands: Sequence[Sequence[str]]


PACKAGE = "benchmarks.rivals"
RQ = ("rq", "worker", "--worker-class", "rq.SimpleWorker")
CELERY = Queue(
    "Celery, prefork 2",
    "with_celery",
    [("celery", "-A", f"{PACKAGE}.with_celery", "worker", "--concurrency", "2", "--loglevel", "info")],
)
DRAMATIQ = Queue("Dramatiq, 2 × 4", "with_dramatiq", [("dramatiq", f"{PACKAGE}.with_dramatiq", "-p", "2", "-t", "4")])
HUEY = Queue(
    "Huey, 4 threads, Flask-Mail as it comes", "with_huey", [("huey_consumer", f"{PACKAGE}.with_huey.huey", "-w", "4")]
)
RIVALS = [CELERY, DRAMATIQ, Queue("RQ, 2 simple workers", "with_rq", [RQ, RQ]), HUEY]

# Longer than the interval of Huey's scheduler.
REST = 1.5

CONSUMER = (str(BIN / "huey_consumer"), "huey_worker.huey", "-w", "4", "-g", "TERM")


class Contestant(ABC):
    """`commands`: its workers; each runs until the contest ends.

    `freezes`: they are stopped while the queue is filled. Otherwise the emails are due later, at `due_at` by
    perf_counter().
    """

    name: str
    commands: Sequence[Sequence[str]]
    settings: dict[str, str]
    freezes = True
    due_at = 0.0

    @abstractmethod
    def fill(self, count: int) -> None:
        """Queue `count` emails; when this returns they are due, or will be at `due_at`."""

    @abstractmethod
    def has_sent(self, count: int) -> bool: ...


class Ours(Contestant):
    """This app. A hint for each email goes through the queue's schedule, as after a signup."""

    def __init__(self, settings: dict[str, str], consumers: int = 1) -> None:
        self.name = f"this app, {consumers} consumer{'s' * (consumers > 1)} × 4"
        self.commands = [CONSUMER] * consumers
        self.settings = settings
        self.app: Flask = app_of(settings)
        # A frozen consumer could hold the lock of an SQLite file.
        self.freezes = "REDIS_URL" in settings
        self.delay = 1.0 if self.freezes else 5.0
        self.reader = rows.reader(settings)

    def fill(self, count: int) -> None:
        # With several apps in this process, the queue belongs to the one that was bound last.
        huey.init_app(self.app)
        self.due_at = time.perf_counter() + self.delay
        promised = rows.promise(self.app, count, delay=self.delay)
        rows.hint(self.app, promised, delay=self.delay)
        if self.freezes:
            rows.analyze(self.app)
            time.sleep(self.delay)

    def has_sent(self, count: int) -> bool:
        return rows.have_sent(self.reader, count)

    def close(self) -> None:
        self.reader.close()
        forget(self.app)


class Rival(Contestant):
    """A queue out of the box, with the naive job; its database has two plain tables."""

    def __init__(self, stage: Stage, queue: Queue, **settings: str) -> None:
        self.name = queue.name
        self.module = queue.module
        self.commands = [[str(RIVALS_BIN / command[0]), *command[1:]] for command in queue.commands]
        self.database = stage.postgres.create()
        self.settings = {
            **stage.settings(DATABASE_URL=self.database, REDIS_URL=stage.valkey.url),
            "TEMPLATES": str(templates(stage)),
            **settings,
        }
        self.environ = stage.environ(self.settings)
        self.connection = psycopg.connect(self.database, autocommit=True)
        self.connection.execute("CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL)")
        self.connection.execute(
            "CREATE TABLE sent_mails"
            " (id serial PRIMARY KEY, user_id int NOT NULL REFERENCES users, sent_at timestamptz)"
        )

    def fill(self, count: int) -> None:
        added = self.connection.execute(
            "INSERT INTO users (email)"
            " SELECT 'user' || n || '@example.com' FROM generate_series(1, %s) AS n RETURNING id",
            [count],
        ).fetchall()
        ids = [user_id for (user_id,) in added]
        run_rival("python", "-m", PACKAGE, self.module, str(min(ids)), str(max(ids)), environ=self.environ)
        # As with ours.
        self.connection.execute("ANALYZE")

    def has_sent(self, count: int) -> bool:
        # As with ours, all are counted only at the end.
        queries = ("SELECT coalesce(max(id), 0) FROM sent_mails", "SELECT count(*) FROM sent_mails")
        return all((self.connection.execute(query).fetchone() or (0,))[0] >= count for query in queries)

    def close(self) -> None:
        self.connection.close()


def templates(stage: Stage) -> os.PathLike[str]:
    """Write our own email as templates for the rivals, so that all send the same one; return their folder."""
    folder = stage.folder / "templates"
    if not folder.exists():
        with stage.servers() as settings:
            app = app_of(settings)
            with app.app_context():
                mail = render.render(kinds.VERIFY_TEMPLATE, "en", "{{ address }}", code="{{ code }}", link="{{ link }}")
            forget(app)
        folder.mkdir()
        (folder / "mail.txt").write_text(mail.body or "", encoding="utf-8")
        (folder / "mail.html").write_text(mail.html or "", encoding="utf-8")
    return folder


@dataclass
class Result:
    """For each round: emails a second, and CPU milliseconds per email of the workers and of PostgreSQL."""

    rates: list[float] = field(default_factory=list)
    worker_ms: list[float] = field(default_factory=list)
    database_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def cpu(self) -> float:
        return median(self.worker_ms)

    @property
    def database_cpu(self) -> float:
        return median(self.database_ms)


class Contest:
    """A contestant's workers, which run until `stack` is closed, and the `result` of the rounds."""

    def __init__(self, stage: Stage, contestant: Contestant, stack: ExitStack, *, warm_up: int) -> None:
        self.stage = stage
        self.contestant = contestant
        self.result = Result()
        self.total = warm_up
        environ = stage.environ(contestant.settings)
        self.workers = [stack.enter_context(Process(*command, environ=environ)) for command in contestant.commands]
        self.pids = [worker.popen.pid for worker in self.workers]
        stack.callback(self.stop)
        contestant.fill(warm_up)
        await_sent(contestant, self.total)

    def round(self, mails: int) -> None:
        """Let the workers send this many emails; contestants that freeze are stopped while the queue is filled."""
        if self.contestant.freezes:
            for pid in self.pids:
                os.killpg(pid, signal.SIGSTOP)
        self.contestant.fill(mails)
        self.total += mails
        cpu, database_cpu = cpu_seconds(*self.pids), cpu_seconds(self.stage.postgres_pid)
        for pid in self.pids:
            os.killpg(pid, signal.SIGCONT)
        begun = max(time.perf_counter(), self.contestant.due_at)
        await_sent(self.contestant, self.total)
        seconds = time.perf_counter() - begun
        # Handling the messages whose emails were sent with others is work, too.
        time.sleep(REST)
        self.result.rates.append(mails / seconds)
        self.result.worker_ms.append(1000 * (cpu_seconds(*self.pids) - cpu) / mails)
        self.result.database_ms.append(1000 * (cpu_seconds(self.stage.postgres_pid) - database_cpu) / mails)

    def stop(self) -> None:
        for worker in self.workers:
            worker.popen.terminate()
        for worker in self.workers:
            with suppress(Exception):
                worker.popen.wait(10)


def run(stage: Stage, contestant: Contestant, *, mails: int, rounds: int, warm_up: int = 100) -> Result:
    """Let the workers send `mails` emails in each round."""
    return run_by_turns(stage, {contestant: mails}, rounds=rounds, warm_up=warm_up)[contestant.name]


def run_by_turns(
    stage: Stage, mails: Mapping[Contestant, int], *, rounds: int, warm_up: int = 100
) -> dict[str, Result]:
    """Run every contestant's first round, then every second round: the machine's speed varies over time.

    Returns results by the contestants' names.
    """
    with ExitStack() as stack:
        contests = [Contest(stage, contestant, stack, warm_up=warm_up) for contestant in mails]
        for _ in range(rounds):
            for contest in contests:
                contest.round(mails[contest.contestant])
    return {contest.contestant.name: contest.result for contest in contests}


def await_sent(contestant: Contestant, total: int) -> None:
    wait_until(lambda: contestant.has_sent(total), f"{contestant.name} did not send {total} mails", pause=0.05)
