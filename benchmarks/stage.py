"""The parts that benchmarks run on: PostgreSQL, a Redis server and a mail sink on loopback, and our programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import flask_migrate
from flask import Flask
from redis import Redis

from harness.processes import BIN, Process, free_port, wait_for_port
from harness.servers import Postgres, Valkey
from webapp import create_app
from webapp.db.base import db
from webapp.paths import ROOT

SINK = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
SINK_IS_MISSING = (
    "smtp-sink is missing: apt-get install --no-install-recommends postfix (its mail server need never be started)"
)
RIVALS_BIN = ROOT / ".venv-bench" / "bin"


class Stage:
    """`folder`: of this run only; it is deleted afterwards."""

    def __init__(self, folder: Path, stack: ExitStack, *, wants_plans: bool = False) -> None:
        self.wants_plans = wants_plans
        if SINK is None:
            raise SystemExit(SINK_IS_MISSING)
        self.folder = folder
        self.postgres = Postgres(folder / "postgres")
        stack.callback(self.postgres.server.cleanup)
        self.valkey = stack.enter_context(Valkey(folder / "valkey"))
        self.sink_port = free_port()
        # It refuses to run as root, and doesn't need to.
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        stack.enter_context(Process(SINK, *user, f"127.0.0.1:{self.sink_port}", "1000", environ={}))
        wait_for_port(self.sink_port)
        self.system = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.system |= {"TZ": "UTC", "PYTHONPATH": str(ROOT)}
        self.template = ""

    @property
    def postgres_pid(self) -> int:
        return self.postgres.pids()[0]

    def settings(self, **changed: str) -> dict[str, str]:
        """Return settings as in production, except for limits that the load from one machine would reach."""
        return {
            "SECRET_KEY": "for-benchmarks-only-0123456789",
            "PUBLIC_URL": "http://signup.example",
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": str(self.sink_port),
            "LOG_FORMAT": "json",
            "RATELIMIT_POST": "1000000/hour",
            "RATELIMIT_STRENGTH": "1000000/hour",
            "RATELIMIT_SIGNUP": "1000000/hour",
            "RATELIMIT_RESEND": "1000000/hour",
            "RATELIMIT_LOGIN_ACCOUNT": "1000000/hour",
            "RATELIMIT_LOGIN_IP": "1000000/hour",
            "MAIL_LIMIT_TOTAL": "1000000/hour",
            **changed,
        }

    @contextmanager
    def servers(self, **changed: str) -> Iterator[dict[str, str]]:
        """Yield settings with a fresh PostgreSQL database, fully migrated, and an empty Redis."""
        if not self.template:
            self.template = self.postgres.create()
            migrate(self.settings(DATABASE_URL=self.template))
        self.wipe_queue()
        url = self.postgres.create(self.template.partition("?")[0].rpartition("/")[2])
        yield self.settings(**{"DATABASE_URL": url, "REDIS_URL": self.valkey.url, **changed})
        self.postgres.drop(url)

    @contextmanager
    def embedded(self, **changed: str) -> Iterator[dict[str, str]]:
        """Yield settings with a fresh SQLite database, and the queue in a file."""
        folder = self.folder / "embedded"
        folder.mkdir()
        settings = self.settings(**{"DATABASE_URL": f"sqlite:///{folder / 'app.db'}", **changed})
        migrate(settings)
        yield settings
        shutil.rmtree(folder)

    def wipe_queue(self) -> None:
        with Redis.from_url(self.valkey.url) as redis:
            redis.flushall()

    def environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return a process's environment."""
        return self.system | dict(settings)

    @contextmanager
    def web(self, settings: Mapping[str, str], program: str = "wsgi:app") -> Iterator[tuple[Process, int]]:
        """Run a web server; yield it and its port."""
        port = free_port()
        command = [str(BIN / "gunicorn"), program, "--bind", f"127.0.0.1:{port}"]
        with Process(*command, environ=self.environ(settings)) as process:
            wait_for_port(port, 60)
            yield process, port


def app_of(settings: Mapping[str, str]) -> Flask:
    """Create the app in this process; it logs only errors."""
    return create_app({**settings, "LOG_LEVEL": "error"})


def forget(app: Flask) -> None:
    """Close the app's database connections."""
    with app.app_context():
        db.engine.dispose()


def migrate(settings: Mapping[str, str]) -> None:
    app = app_of(settings)
    with app.app_context():
        flask_migrate.upgrade(str(ROOT / "migrations"))
    forget(app)


def run_rival(*command: str, environ: Mapping[str, str]) -> None:
    """Run a program from the rivals' environment, and wait for it."""
    subprocess.run([str(RIVALS_BIN / command[0]), *command[1:]], cwd=ROOT, env=dict(environ), check=True)
