"""Database outages of every kind: each is logged in one line, and everything recovers by itself."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask, template_rendered
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError

from harness.postgres_pair import Pair
from harness.processes import BIN, Process, consumer, free_port, run_flask, wait_until
from harness.servers import Postgres, Valkey
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.conftest import OwnPostgres, migrate, settings
from tests.factories import change, get, make_signup
from tests.system.test_journey import Environ, website_and_log
from webapp import create_app, operations
from webapp.accounts.identifiers import email_addresses
from webapp.db import engines, outages, schema
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import relay
from webapp.delivery.tasks import deliver_email
from webapp.outbox.outgoing_email import OutgoingEmail

on_servers = pytest.mark.parametrize("backend", ["servers"], indirect=True)
on_embedded = pytest.mark.parametrize("backend", ["embedded"], indirect=True)

# We promise ten seconds, but this machine may be busy.
BACK_WITHIN = 30


def sign_up(url: str, name: str) -> int:
    visitor = Visitor(url)
    if visitor.open("/signup").status_code != 200:
        return visitor.page.status_code
    fields = {"username": name, "email": f"{name}@example.com", "password": "correct horse battery"}
    return visitor.submit("/signup", follow=False, **fields).status_code


@contextmanager
def read_only(postgres: Postgres, url: str, *, ending: bool) -> Iterator[None]:
    """Make it read-only, like a standby or a database on a full disk; `ending`: also end its connections."""
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    with psycopg.connect(url) as connection:
        wait_until(lambda: shows(connection, "transaction_read_only") == "on", "it may be written")
    if ending:
        postgres.execute(end)
    yield
    postgres.execute(
        "SET default_transaction_read_only = off",
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    )


def shows(connection: psycopg.Connection, name: str) -> str:
    connection.rollback()
    row = connection.execute(f"SHOW {name}").fetchone()
    assert row
    return str(row[0])


@contextmanager
def stopped(postgres: Postgres, _url: str) -> Iterator[None]:
    postgres.stop()
    yield
    postgres.start()


@pytest.mark.parametrize("trouble", ["read only", "read only, new connections", "stopped"])
@pytest.mark.timeout(240)
def test_a_database_that_was_away_is_used_again_without_a_restart(
    on_own_postgres: Environ, own_postgres: OwnPostgres, smtp: Server, trouble: str
) -> None:
    environ = on_own_postgres | {"VERIFY_EMAIL_DELAY": "0", "WEB_CONCURRENCY": "1"}
    with website_and_log(environ) as (url, web), consumer(environ) as worker:
        worker.wait_for_event("worker_started")
        assert sign_up(url, "ann") == 303
        smtp.wait_for("ann@example.com")
        away = (
            stopped(own_postgres.postgres, own_postgres.url)
            if trouble == "stopped"
            else read_only(own_postgres.postgres, own_postgres.url, ending="new" in trouble)
        )
        with away:
            assert sign_up(url, "ben") == 503
            visitor = Visitor(url)
            assert visitor.open("/readyz").status_code == 503
            assert visitor.page.json() == {"status": "not ready", "database": "down"}
            worker.wait_for_event("database_down")
            for command in (["mail", "pause", "trouble"], ["users", "list"]):
                assert_one_line(run_flask(environ, *command), 3, "the database isn't responding: ")
            doctor = run_flask(environ, "mail", "doctor")
            assert doctor.returncode == 1
            said = "isn't responding" if trouble == "stopped" else "is read-only"
            assert_findings(doctor.stdout, doctor.stderr, f"the database {said}")
            # There is no event for workers that failed repeatedly; below we check that they log it only once.
            time.sleep(4)
        wait_until(lambda: Visitor(url).open("/readyz").status_code == 200, "the web is not ready", BACK_WITHIN)
        assert sign_up(url, "cat") == 303
        smtp.wait_for("cat@example.com", seconds=BACK_WITHIN)

        def has_told() -> bool:
            Visitor(url).open("/readyz")
            return bool(web.events("database_up"))

        # The web tells of the end with the first answer after some seconds without a failure.
        wait_until(has_told, "the web tells of no end", BACK_WITHIN)
        for process in (web, worker):
            (down,) = process.events("database_down")
            assert down["level"] == "error"
            up = process.wait_for_event("database_up")
            assert up["failures"] >= 1
            assert len(process.events("database_up")) == 1
            assert "Traceback" not in process.log
        assert worker.stop() == 0


def assert_one_line(ended: subprocess.CompletedProcess[str], code: int, begins: str) -> None:
    assert ended.returncode == code
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(begins)


def assert_findings(stdout: str, stderr: str, *begin: str) -> list[str]:
    """Check that doctor reports exactly these, and return its lines; it also prints its version."""
    lines = stdout.splitlines()
    assert [line[: len(text)] for line, text in zip(lines, begin, strict=True)] == list(begin)
    (told,) = stderr.splitlines()
    assert told.startswith("version ")
    return lines


@pytest.fixture
def pair() -> Iterator[Pair]:
    # Not in pytest's own folder, which is closed to the user that Postgres runs as.
    folder = Path(tempfile.mkdtemp(prefix="signup-pair-"))
    with Pair(folder) as pair:
        yield pair
    shutil.rmtree(folder)


@pytest.fixture
def on_pair(pair: Pair, valkey: Valkey, system_environ: Environ, smtp: Server) -> Environ:
    url = pair.create()
    migrate({"DATABASE_URL": url})
    own = {"DATABASE_URL": url, "REDIS_URL": valkey.url, "LOG_FORMAT": "json", "WEB_CONCURRENCY": "1"}
    return {**system_environ, **settings(smtp.port), **own, "VERIFY_EMAIL_DELAY": "0"}


def takes(url: str, username: str) -> bool:
    return sign_up(url, username) == 303


@pytest.mark.timeout(300)
def test_when_postgres_fails_over_web_and_workers_go_with_it(on_pair: Environ, pair: Pair, smtp: Server) -> None:
    with website_and_log(on_pair) as (url, web), consumer(on_pair) as worker:
        worker.wait_for_event("worker_started")
        for keeping, before, after in ((True, "ann", "ben"), (False, "cat", "dan")):
            assert sign_up(url, before) == 303
            pair.fail_over(keeping=keeping)
            wait_until(partial(takes, url, after), "no signup is taken", BACK_WITHIN)
            for name in (before, after):
                smtp.wait_for(f"{name}@example.com", seconds=BACK_WITHIN)
            if keeping:
                pair.restore()
        assert worker.stop() == 0
        assert "Traceback" not in web.log + worker.log


@pytest.mark.timeout(300)
def test_a_mail_whose_outcome_was_lost_at_a_failover_is_sent_again(on_pair: Environ, pair: Pair, smtp: Server) -> None:
    app = create_app(on_pair | {"VERIFY_EMAIL_DELAY": "20"})
    with consumer(on_pair) as worker:
        worker.wait_for_event("worker_started")
        email_id = make_signup(app, due=False)
        # From here on the standby gets nothing, as if it were asynchronous.
        pair.primary.execute("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
        pair.standby.stop("fast")
        change(app, email_id, next_attempt_at=db_now())
        smtp.wait_for("mick@example.com", seconds=BACK_WITHIN)
        wait_until(lambda: get(app, email_id).status == "sent", "its outcome was not written down")
        pair.primary.stop()
        pair.standby.start()
        pair.fail_over(keeping=False)
        wait_until(lambda: get(app, email_id).status == "sent", "it was not sent again", 90)
    first, second = smtp.mails
    assert (first.message_id, first.link) == (second.message_id, second.link)
    with app.app_context():
        db.engine.dispose()


def test_hints_wait_for_a_database_that_is_away(
    on_own_postgres: Environ, own_postgres: OwnPostgres, smtp: Server
) -> None:
    app = create_app(on_own_postgres)
    with consumer(on_own_postgres) as worker:
        worker.wait_for_event("worker_started")
        own_postgres.postgres.stop()
        worker.wait_for_event("database_down")
        with app.app_context():
            for number in range(300):
                app.extensions["huey"].enqueue(hint(f"00000000-0000-0000-0000-{number:012}"))
        failed = worker.wait_for_event("process task failed")
        assert failed["task"] == "deliver_email"
        # A retry can start with any connection that looked healthy a moment ago.
        assert len(worker.events("process task failed")) < 30
        own_postgres.postgres.start()
        worker.wait_for_event("database_up", BACK_WITHIN)
        wait_until(lambda: app.extensions["huey"].waiting() == 0, "the hints stayed", BACK_WITHIN)
        assert len(worker.events("process task failed")) < 30
        assert "Traceback" not in worker.log


def hint(email_id: str) -> Any:
    return deliver_email.s(email_id=email_id)


# In one process, since each SQLite connection needs the pragma.


@contextmanager
def told(app: Flask, *pragmas: str) -> Iterator[None]:
    """Execute this on SQLite connections when they are opened."""
    with app.app_context():
        engine = db.engine

    def tell(connection: Any, _record: Any) -> None:
        for pragma in pragmas:
            connection.execute(pragma)

    event.listen(engine, "connect", tell)
    engine.dispose()
    yield
    event.remove(engine, "connect", tell)
    engine.dispose()


MAILS = OutgoingEmail.__tablename__
FAIL = """
    CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END$$
"""


@contextmanager
def without_room(app: Flask) -> Iterator[None]:
    """Leave the database no space for another user or email."""
    with app.app_context():
        engine = db.engine
    if engine.dialect.name == "sqlite":
        # If there are more pages, it returns their number.
        with told(app, "PRAGMA max_page_count = 1"):
            fill_pages(app)
            yield
        return
    triggers = [f"CREATE TRIGGER f AFTER INSERT ON {table} EXECUTE FUNCTION fail()" for table in ("users", MAILS)]
    with engine.begin() as connection:
        for statement in (FAIL, *triggers):
            connection.exec_driver_sql(statement)
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION fail() CASCADE")


def fill_pages(app: Flask) -> None:
    """Fill the free space in existing pages, so that the next row needs a new one."""
    with suppress(outages.DatabaseAway):
        while True:
            make_signup(app, due=False)
    with suppress(outages.DatabaseAway):
        while True:
            with app.app_context():
                operations.post_test(email_addresses.parse_address("root@example.com"))


def test_a_full_database_is_told_of(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow this machine is, the database counts as full until the end of the test.
    monkeypatch.setattr(outages, "QUIET_SECONDS", 60.0)
    visitor = Visitor("http://signup.example", app)
    visitor.open("/signup")
    with without_room(app):
        visitor.sign_up()
        assert visitor.page.status_code == 503
        assert visitor.page.headers["Retry-After"]
        assert visitor.open("/readyz").status_code == 503
        assert visitor.page.json()["database"] == "full"
        doctor = app.test_cli_runner().invoke(args=["mail", "doctor"])
        assert doctor.exit_code == 1
        # The rows can still be read.
        full, _worker = assert_findings(doctor.stdout, doctor.stderr, "the database is full: ", "no worker is alive: ")
        assert ": df -h" in full
    monkeypatch.setattr(outages, "QUIET_SECONDS", 0.0)
    assert visitor.open("/readyz").status_code == 200
    visitor.sign_up()
    assert visitor.path == "/signup/sent"


def test_a_mistake_in_a_statement_is_no_outage(app: Flask) -> None:
    with app.app_context():
        schema.check()
        with pytest.raises(DBAPIError, match="no_such_column") as error:
            db.session.execute(text("SELECT no_such_column FROM users"))
        assert not outages.is_outage(error.value)
        assert outages.of(app).is_over


@on_embedded
def test_an_sqlite_file_that_may_only_be_read_is_a_database_that_is_away(app: Flask) -> None:
    file = app.config["SQLALCHEMY_DATABASE_URI"].removeprefix("sqlite:///")
    visitor = Visitor("http://signup.example", app)
    visitor.open("/signup")
    with told(app, "PRAGMA query_only = 1"):
        visitor.sign_up()
        assert visitor.page.status_code == 503
        assert visitor.open("/readyz").status_code == 503
        paused = app.test_cli_runner().invoke(args=["mail", "pause", "trouble"])
        assert paused.exit_code == 3
        assert paused.stderr == "the database isn't responding: attempt to write a readonly database\n"
        doctor = app.test_cli_runner().invoke(args=["mail", "doctor"])
        assert doctor.exit_code == 1
        (finding,) = assert_findings(doctor.stdout, doctor.stderr, "the database is read-only: ")
        assert finding == (
            f"the database is read-only: attempt to write a readonly database: ls -ld {Path(file).parent} {file}"
        )
    assert visitor.open("/readyz").status_code == 200
    visitor.sign_up()
    assert visitor.path == "/signup/sent"


def session(app: Flask, name: str) -> str:
    with app.app_context():
        return str(db.session.scalar(text(f"SHOW {name}")))


@on_servers
def test_the_server_bounds_what_a_connection_of_ours_may_hold(environ: Environ) -> None:
    bounds = ("idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout")
    plain = create_app(environ)
    assert [session(plain, name) for name in bounds] == ["5s", "5s", "30s"]
    meant = create_app(environ | {"DATABASE_URL": environ["DATABASE_URL"] + "&options=-c%20lock_timeout%3D9s"})
    assert [session(meant, name) for name in bounds] == ["5s", "9s", "30s"]
    with meant.app_context():
        # A session setting outlives a rolled-back transaction.
        db.session.rollback()
        assert session(meant, "lock_timeout") == "9s"
    for app in (plain, meant):
        with app.app_context():
            db.engine.dispose()


def end_transaction(environ: Environ, cause: str) -> None:
    """Let the server end this session's transaction and connection."""
    pid = db.session.scalar(text("SELECT pg_backend_pid()"))
    if cause == "idle":
        db.session.execute(text("SET idle_in_transaction_session_timeout = '50ms'"))
    with psycopg.connect(environ["DATABASE_URL"], autocommit=True) as other:
        if cause == "terminated":
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        backend = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: other.execute(backend, [pid]).fetchone() is None, "the connection is still there")


@on_servers
@pytest.mark.parametrize("cause", ["terminated", "idle"])
def test_a_page_that_is_ready_is_shown_though_its_transaction_was_ended(
    environ: Environ, app: Flask, member: Visitor, cause: str
) -> None:
    def end(_sender: Flask, **_context: Any) -> None:
        end_transaction(environ, cause)

    with template_rendered.connected_to(end, app):
        assert member.open("/account").status_code == 200
        assert "Your account" in member.page.text
    assert member.open("/account").status_code == 200


@on_servers
def test_of_several_hosts_the_one_that_may_be_written_is_used(environ: Environ, app: Flask) -> None:
    with app.app_context():
        folder = db.session.scalar(text("SHOW unix_socket_directories"))
    path = environ["DATABASE_URL"].partition("?")[0]
    both = create_app(environ | {"DATABASE_URL": f"{path}?host=127.0.0.1,{folder}&port={free_port()},5432"})
    make_signup(both)
    with both.app_context():
        assert db.engine.dialect.name == "postgresql"
        db.engine.dispose()


@on_servers
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_all_names_is_refused_at_start(
    process_environ: Environ, postgres: Postgres, encoding: str
) -> None:
    name = f"test_{encoding.lower()}"
    postgres.execute(
        f"DROP DATABASE IF EXISTS {name}",
        f"CREATE DATABASE {name} ENCODING {encoding} LOCALE 'C' TEMPLATE template0",
    )
    url = postgres.url(name)
    environ = process_environ | {"DATABASE_URL": url}
    told = f"DATABASE_URL: must name a database in UTF8, not {encoding}"
    for command in (
        ["gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{free_port()}"],
        ["huey_consumer", "huey_worker.huey"],
    ):
        with Process(str(BIN / command[0]), *command[1:], environ=environ) as process:
            assert process.popen.wait(60) == 1
            assert told in process.log
            assert "Traceback" not in process.log
    assert told.partition(": ")[2] in run_flask(environ, "mail", "stats").stderr
    app = create_app({name: value for name, value in environ.items() if name.isupper()})
    assert Visitor("http://signup.example", app).open("/readyz").status_code == 503
    with app.app_context():
        db.engine.dispose()
    postgres.drop(url)


def test_a_postgres_that_is_frozen_keeps_no_worker_for_good(
    on_own_postgres: Environ, own_postgres: OwnPostgres
) -> None:
    """Its system answers for it, while another server may have taken its place."""
    app = create_app(on_own_postgres)
    with app.app_context():
        schema.check()
        connection = db.session.connection().connection.driver_connection
        assert isinstance(connection, engines.BoundedConnection)
        # After as long as it waits in truth, the test would be over.
        connection.timeout = 1.0
        with own_postgres.postgres.frozen(), pytest.raises(outages.DatabaseAway, match=r"within 1\.0 s"):
            schema.check()
        db.session.rollback()
        schema.check()
        db.engine.dispose()


@on_servers
def test_the_relay_outlives_a_connection_that_is_lost_amid_a_transaction(app: Flask, environ: Environ) -> None:
    def lose_it() -> float:
        pid = db.session.scalar(select(func.pg_backend_pid()))
        with psycopg.connect(environ["DATABASE_URL"], autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        return 1.0

    its = relay.Relay()
    its.jobs = [relay.Job(lose_it)]
    with app.app_context():
        its.turn()
