"""The real parts of one run, each of which can be broken and repaired."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis

from chaos.gate import gate
from harness.postgres_pair import Pair
from harness.processes import BIN, Freezer, free_port, wait_for_port
from harness.servers import Valkey
from harness.smtp_server import Action, Connection, Dropped, Server, Step
from webapp.paths import ROOT

WORKER_THREADS = 4
DELAY = 2
MAIL_TIMEOUT = 3
CLOCK_OFFSET = 600
LOOK_UP_SECONDS = 0.4


@dataclass(frozen=True)
class App:
    """An app that can run in a world: ours, or the one it is compared with."""

    name: str
    web: str
    worker: str
    migrate: tuple[str, ...]

    @property
    def senders(self) -> int:
        """Return how many threads of a consumer send email."""
        return WORKER_THREADS + (self is OURS)


OURS = App("ours", "wsgi:app", "huey_worker.huey", ("flask", "--app", "wsgi", "db", "upgrade"))
NAIVE = App("commit, then schedule", "chaos.naive:app", "chaos.naive.huey", ("chaos.naive",))


class Program:
    """One of our processes, which is started again and again with the same log file."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.command = command
        self.environ = environ
        self.log = folder / f"{name}.log"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def signal(self, number: signal.Signals) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        if self.popen.poll() is None:
            # The whole process group, for gunicorn's workers too.
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def has_ended(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        return self.popen.poll() is not None


class Ledger(Server):
    """The mail server. It takes its time, permanently refuses some addresses, and fails at a step when told to."""

    def misbehave(self, actions: Mapping[Step, Action]) -> None:
        # Pause before and after an email enters the ledger, so that kills find emails in every state.
        self.actions = {"RCPT": refuse_chosen, "dot": think, "answer": think, **actions}

    def look_up(self) -> None:
        """Take time only at the recipient, before there is an email to take."""
        self.looked_up_at: list[float] = []
        self.actions = {"RCPT": look_up}


def look_up(connection: Connection) -> None:
    """Take a while over each recipient; if the server is stopped meanwhile, drop the connection."""
    assert isinstance(connection.server, Ledger)
    connection.server.looked_up_at.append(time.monotonic())
    if connection.server.stopping.wait(LOOK_UP_SECONDS):
        raise Dropped


def think(connection: Connection) -> None:
    connection.server.stopping.wait(0.1)


def refuse_chosen(connection: Connection) -> str | None:
    return "550 5.1.1 no such mailbox" if is_refused(connection.recipients[-1]) else None


def is_refused(address: str) -> bool:
    return address.startswith("refused")


class Servers:
    """PostgreSQL with a standby, and Redis, as in production; Redis behind a gate."""

    name = "servers"

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.postgres = stack.enter_context(Pair(folder / "postgres"))
        self.restoring: threading.Thread | None = None
        self.valkey = stack.enter_context(Valkey(folder / "valkey", port=free_port()))
        self.gate = stack.enter_context(gate(self.valkey.port or 0))
        url = self.postgres.create()
        self.settings = {"DATABASE_URL": url, "REDIS_URL": f"redis://127.0.0.1:{self.gate.port}/0"}

    def fail_over(self, *, keeping: bool, seconds: float) -> None:
        """Make the standby take over; the former primary is away or read-only for `seconds`, then follows it."""
        self.postgres.fail_over(keeping=keeping)

        def restore() -> None:
            time.sleep(seconds)
            self.postgres.restore()

        self.restoring = threading.Thread(target=restore)
        self.restoring.start()

    def wait_for_standby(self) -> None:
        if self.restoring:
            self.restoring.join()
            self.restoring = None

    def wipe_queue(self) -> None:
        with Redis.from_url(self.valkey.url) as redis:
            redis.flushall()

    def mend(self) -> None:
        self.wait_for_standby()
        self.postgres.start()
        if not self.valkey.server.is_running():
            self.valkey.start()
        self.gate.open()


class Embedded:
    """SQLite and the queue in a file, as on a fresh machine."""

    name = "embedded"

    def __init__(self, folder: Path) -> None:
        self.database = folder / "app.db"
        self.queue = folder / "app-queue.db"
        self.settings = {"DATABASE_URL": f"sqlite:///{self.database}"}
        self.locks: dict[Path, sqlite3.Connection] = {}

    def wipe_queue(self) -> None:
        # A frozen consumer may hold the lock; then this does nothing.
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self.queue)) as queue, queue:
            queue.execute("DELETE FROM task")
            queue.execute("DELETE FROM schedule")

    def lock(self, file: Path) -> None:
        """Take the file's only write lock, like a slow disk or a careless backup."""
        connection = self.locks[file] = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        # If a frozen consumer holds it, the file is locked anyway.
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")

    def unlock(self, file: Path) -> None:
        if connection := self.locks.pop(file, None):
            connection.close()

    def mend(self) -> None:
        for file in list(self.locks):
            self.unlock(file)


@dataclass
class World:
    """`stopped_slowly`: consumers that took too long to stop. `frozen_at`: the statements after which one froze.

    `hurried`: the ids of emails that were made due by `flask mail retry`.
    """

    app: App
    backend: Servers | Embedded
    smtp: Ledger
    web: Program
    consumers: list[Program]
    freezers: list[Freezer]
    url: str
    stopped_slowly: list[str]
    frozen_at: list[str]
    hurried: list[str] = field(default_factory=list)

    @property
    def servers(self) -> Servers:
        assert isinstance(self.backend, Servers)
        return self.backend

    @property
    def embedded(self) -> Embedded:
        assert isinstance(self.backend, Embedded)
        return self.backend

    def flask(self, *command: str) -> None:
        """Run one of our app's commands."""
        subprocess.run(
            [str(BIN / "flask"), *command], cwd=ROOT, env=self.web.environ, check=True, capture_output=True, timeout=60
        )

    def mend(self) -> None:
        """Make everything work again."""
        self.backend.mend()
        self.smtp.misbehave({})
        if self.smtp.stopping.is_set():
            self.smtp.start()
        for program in [self.web, *self.consumers]:
            program.signal(signal.SIGCONT)
            if program.popen.poll() is not None:
                program.start()


@contextmanager
def world(app: App, backend: str, folder: Path, consumers: int) -> Iterator[World]:
    """Start everything, and end it afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        parts: Servers | Embedded = Servers(folder, stack) if backend == Servers.name else Embedded(folder)
        if isinstance(parts, Servers) and app is NAIVE:
            # It can't read a URL with several hosts, and there are no failovers in its runs.
            parts.settings["DATABASE_URL"] = parts.postgres.primary.url("app")
        smtp = stack.enter_context(Ledger())
        smtp.misbehave({})
        environ = {**system_environ(), **settings(smtp.port), **parts.settings}
        subprocess.run([sys.executable, "-m", *app.migrate], cwd=ROOT, env=environ, check=True, capture_output=True)
        port = free_port()
        web = Program("web", [str(BIN / "gunicorn"), app.web, "--bind", f"127.0.0.1:{port}"], environ, folder)
        # On SIGTERM a worker finishes what it is doing. An idle embedded queue is polled twice a second.
        command = [str(BIN / "huey_consumer"), app.worker, "-w", str(WORKER_THREADS), "-g", "TERM", "-m", "0.5"]
        freezers = [Freezer(folder) for _ in range(consumers)]
        workers = [
            Program(f"consumer{n}", command, environ | inside(n, app, parts, freezer), folder)
            for n, freezer in enumerate(freezers, 1)
        ]
        for program in [web, *workers]:
            program.start()
            stack.callback(program.kill)
        wait_for_port(port, 60)
        yield World(app, parts, smtp, web, workers, freezers, f"http://127.0.0.1:{port}", [], [])


def settings(mail_port: int) -> dict[str, str]:
    return {
        "SECRET_KEY": "for-chaos-only-0123456789",
        "PUBLIC_URL": "http://signup.example",
        "MAIL_SERVER": "127.0.0.1",
        "MAIL_PORT": str(mail_port),
        "MAIL_TIMEOUT": str(MAIL_TIMEOUT),
        "MAIL_ANSWER_TIMEOUT": str(MAIL_TIMEOUT),
        "VERIFY_EMAIL_DELAY": str(DELAY),
        "LOG_FORMAT": "json",
        "WEB_CONCURRENCY": "2",
        # All the load comes from one IP address; the limits on emails to each address stay.
        "RATELIMIT_POST": "none",
        "RATELIMIT_SIGNUP": "none",
        "MAIL_LIMIT_TOTAL": "none",
    }


def system_environ() -> dict[str, str]:
    """The part of our environment that a process needs, without settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "TZ": "UTC", "PYTHONUNBUFFERED": "1"}


def inside(number: int, app: App, backend: Servers | Embedded, freezer: Freezer) -> dict[str, str]:
    """Let consumers freeze in a transaction, and give two of them wrong clocks, if the database has its own clock.

    Not for the naive app: pickles made under a wrong clock can't be read under a right one, which would be our fault.
    """
    if app is not OURS or not isinstance(backend, Servers):
        return {}
    offset = {2: CLOCK_OFFSET, 3: -CLOCK_OFFSET}.get(number, 0)
    return {**freezer.environ, "CHAOS_CLOCK_OFFSET": str(offset)}
