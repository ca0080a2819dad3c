"""What runs during a soak: two web processes, two consumers, PostgreSQL, a Redis-protocol server and a mail server."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import flask_migrate
from flask import Flask

from chaos.world import OURS, WORKER_THREADS, Ledger, Program, refuse_chosen, settings, system_environ
from harness.processes import BIN, free_port, wait_for_port
from harness.servers import Postgres, Valkey
from harness.smtp_server import Mail
from tools import admin
from webapp import create_app
from webapp.db.base import db
from webapp.paths import ROOT

CONSUMERS = 2
METRICS_TOKEN = "for-soak-only-0123456789"  # noqa: S105 - opens nothing else
OPERATOR = "operator"
# Visitors read their email within this time.
READABLE_SECONDS = 120
STOP_SECONDS = 20

# As behind a proxy in production. Rate limits cover a minute, so that their keys in Redis expire within the run.
SETTINGS = {
    "TRUSTED_PROXIES": "1",
    "METRICS_TOKEN": METRICS_TOKEN,
    "RETENTION_DAYS": "14",
    "MAIL_TIMEOUT": "20",
    "MAIL_ANSWER_TIMEOUT": "60",
    "MAIL_LIMIT_PER_ADDRESS": "5/minute",
    "MAIL_LIMIT_TOTAL": "1000/minute",
    "RATELIMIT_POST": "1200/minute",
    "RATELIMIT_SIGNUP": "30/minute",
    "RATELIMIT_RESEND": "10/minute",
    "RATELIMIT_RESET": "30/minute",
    "RATELIMIT_LOGIN_ACCOUNT": "10/minute",
    "RATELIMIT_LOGIN_IP": "100/minute",
    "RATELIMIT_LOGIN_KNOWN": "10/minute",
    "RATELIMIT_ACCOUNT": "60/minute",
}


@dataclass(frozen=True)
class Taken:
    """An accepted email, and when it was accepted, by the wall clock."""

    message_id: str
    at: float


class Mailbox(Ledger):
    """Keeps each email while it may be read, and a record of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.actions = {"RCPT": refuse_chosen}
        self.taken: list[Taken] = []

    def accept(self, mail: Mail) -> None:
        found = re.search(rb"^Message-ID:\s*(\S+)", mail.content, re.MULTILINE | re.IGNORECASE)
        self.taken.append(Taken(found[1].decode() if found else "", time.time()))
        super().accept(mail)
        with self.arrived:
            while self.mails[0].at < time.monotonic() - READABLE_SECONDS:
                self.mails.pop(0)
        self.heard.clear()


@dataclass(frozen=True)
class Stage:
    """`app`: an instance in this process, for the operator's commands; `password`: the operator's."""

    url: str
    database: str
    valkey: Valkey
    mailbox: Mailbox
    web: Program
    consumers: list[Program]
    app: Flask
    password: str

    @property
    def programs(self) -> list[Program]:
        return [self.web, *self.consumers]

    @property
    def logs(self) -> list[Path]:
        return [program.log for program in self.programs]

    def stop(self) -> list[str]:
        """Send SIGTERM to web and workers; return which did not stop in time."""
        for program in self.programs:
            program.signal(signal.SIGTERM)
        return [program.name for program in self.programs if not program.has_ended(STOP_SECONDS)]


@contextmanager
def stage(folder: Path, day: float) -> Iterator[Stage]:
    """Start everything, and stop it at the end; `day`: the seconds of a day, for retention."""
    with ExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.server.cleanup)
        valkey = stack.enter_context(Valkey(folder / "valkey"))
        mailbox = stack.enter_context(Mailbox())
        chosen = {
            **settings(mailbox.port),
            **SETTINGS,
            "DATABASE_URL": postgres.create(),
            "REDIS_URL": valkey.url,
        }
        app = create_app({**chosen, "LOG_LEVEL": "error"})
        password = prepare(app)
        # The first folder shortens days (sitecustomize), and does so by importing the app from the second.
        inside = {"PYTHONPATH": f"{ROOT / 'chaos' / 'inside'}:{ROOT}", "CHAOS_DAY": str(day)}
        web, consumers, port = programs({**system_environ(), **chosen, **inside}, folder)
        for program in [web, *consumers]:
            program.start()
            stack.callback(program.kill)
        wait_for_port(port, 60)
        url = f"http://127.0.0.1:{port}"
        yield Stage(url, chosen["DATABASE_URL"], valkey, mailbox, web, consumers, app, password)


def prepare(app: Flask) -> str:
    """Create the tables and an operator; return the operator's password."""
    with app.app_context():
        flask_migrate.upgrade(str(ROOT / "migrations"))
        password = f"{OPERATOR} walks a long way"
        admin.make(password, OPERATOR)
        db.engine.dispose()
    return password


def programs(environ: Mapping[str, str], folder: Path) -> tuple[Program, list[Program], int]:
    port = free_port()
    web = Program("web", [str(BIN / "gunicorn"), OURS.web, "--bind", f"127.0.0.1:{port}"], environ, folder)
    command = [str(BIN / "huey_consumer"), OURS.worker, "-w", str(WORKER_THREADS), "-g", "TERM"]
    consumers = [Program(f"consumer{n}", command, environ, folder) for n in range(1, CONSUMERS + 1)]
    return web, consumers, port
