"""Outages of the queue and of the database, also between any two steps."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import trustme
from flask import Flask
from redis import Redis
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from harness.processes import consumer, free_port, wait_until, within
from harness.proxies import black_hole, hang_up, listening, pooler, tls
from harness.servers import Valkey
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.conftest import OwnPostgres
from tests.factories import make_signup
from tests.system.test_journey import Environ, website, website_and_log
from webapp import create_app
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.outbox.outgoing_email import OutgoingEmail

# Redis is what goes away here, so the embedded queue does not take part.
on_servers = pytest.mark.parametrize("backend", ["servers"], indirect=True)


@pytest.fixture
def environ_of_processes(process_environ: Environ) -> Environ:
    return process_environ | {"VERIFY_EMAIL_DELAY": "1", "LOG_FORMAT": "json", "RATELIMIT_ENABLED": "true"}


def sign_up_quickly(url: str, **fields: str) -> None:
    """Sign up, and insist on a 303 within two seconds."""
    visitor = Visitor(url)
    visitor.open("/signup")
    data = {"username": "mick19", "full_name": "", "email": "mick@example.com", "password": "correct horse battery"}
    with within(2):
        visitor.submit("/signup", follow=False, **{**data, **fields})
    assert visitor.page.status_code == 303


@on_servers
@pytest.mark.parametrize("trouble", ["refuses", "answers nothing", "dies in the middle of a request"])
def test_whatever_redis_does_a_signup_answers_at_once_and_its_mail_arrives(
    environ_of_processes: Environ, smtp: Server, trouble: str
) -> None:
    environ = environ_of_processes
    with ExitStack() as stack:
        handlers = {"answers nothing": black_hole, "dies in the middle of a request": hang_up}
        port = stack.enter_context(listening(handlers[trouble])) if trouble in handlers else free_port()
        environ["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        url, web = stack.enter_context(website_and_log(environ))
        worker = stack.enter_context(consumer(environ))
        for name in ("ann", "ben"):
            sign_up_quickly(url, username=name, email=f"{name}@example.com")
        for name in ("ann", "ben"):
            smtp.wait_for(f"{name}@example.com", seconds=30)
        assert web.events("hint_failed")
        assert worker.stop() == 0
    assert len(smtp.mails) == 2


@on_servers
def test_only_the_first_waits_for_a_redis_that_does_not_answer(environ_of_processes: Environ) -> None:
    with listening(black_hole) as port:
        environ_of_processes["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        # One process, so one breaker.
        with website_and_log(environ_of_processes | {"WEB_CONCURRENCY": "1"}) as (url, web):
            for n in range(3):
                sign_up_quickly(url, username=f"mick{n}", email=f"mick{n}@example.com")
            # The limits ask Redis first, then the hint; later callers are not kept waiting.
            first, *others = [line["error"] for line in web.events("limit_not_checked")]
            hints = [line["error"] for line in web.events("hint_failed")]
            assert "Timeout" in first
            assert others
            assert len(hints) == 3
            assert all("left alone" in other for other in [*others, *hints])
            assert len(web.events("broker_down")) == 1


@on_servers
@pytest.mark.parametrize("keeps_its_data", [True, False])
def test_a_redis_restarted_between_signup_and_delivery_loses_no_mail(
    environ_of_processes: Environ,
    smtp: Server,
    tmp_path: Path,
    keeps_its_data: bool,  # noqa: FBT001
) -> None:
    environ = environ_of_processes | {"VERIFY_EMAIL_DELAY": "3"}
    with Valkey(tmp_path / "valkey", keep=keeps_its_data, port=free_port()) as valkey:
        environ["REDIS_URL"] = valkey.url
        with website(environ) as url, consumer(environ) as worker:
            worker.wait_for_event("worker_started")
            sign_up_quickly(url)
            valkey.kill()
            sign_up_quickly(url, username="ann", email="ann@example.com")
            valkey.start()
            sign_up_quickly(url, username="ben", email="ben@example.com")
            for name in ("mick", "ann", "ben"):
                smtp.wait_for(f"{name}@example.com", seconds=60)
            assert worker.stop() == 0
    assert len(smtp.mails) == 3


@on_servers
def test_redis_over_tls_is_used_when_its_certificate_is_good_and_only_then(
    environ_of_processes: Environ, valkey: Valkey, smtp: Server, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = tls_context(authority)
    assert valkey.port
    with listening(tls(context, valkey.port)) as port:
        trusting = environ_of_processes | {"REDIS_URL": f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem"}
        with website_and_log(trusting) as (url, web), consumer(trusting) as worker:
            worker.wait_for_event("worker_started")
            sign_up_quickly(url)
            smtp.wait_for("mick@example.com")
            assert web.events("enqueued task")
            worker.wait_for_event("processed task")
        distrusting = environ_of_processes | {"REDIS_URL": f"rediss://localhost:{port}/0"}
        with website_and_log(distrusting) as (url, web):
            sign_up_quickly(url)
            assert "CERTIFICATE_VERIFY_FAILED" in web.events("broker_down")[0]["error"]


@on_servers
def test_redis_by_unix_socket_and_with_a_password(environ_of_processes: Environ, smtp: Server, tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    with Valkey(tmp_path / "valkey", {"unixsocket": str(socket)}) as valkey:
        with Redis.from_url(valkey.url) as redis:
            redis.config_set("requirepass", "open/sesame")
        for number, address in enumerate(
            (f"unix://:open%2Fsesame@{socket}?db=1", f"redis://:open%2Fsesame@127.0.0.1:{valkey.port}/1")
        ):
            environ = environ_of_processes | {"REDIS_URL": address}
            with website_and_log(environ) as (url, web), consumer(environ) as worker:
                worker.wait_for_event("worker_started")
                sign_up_quickly(url, username=f"mick{number}", email=f"mick{number}@example.com")
                smtp.wait_for(f"mick{number}@example.com")
                assert web.events("enqueued task")
                assert worker.wait_for_event("processed task")


def test_postgres_stopped_after_signup_is_logged_and_started_again_the_mail_arrives(
    on_own_postgres: Environ, own_postgres: OwnPostgres, smtp: Server
) -> None:
    environ = on_own_postgres | {"VERIFY_EMAIL_DELAY": "2"}
    with website(environ) as url, consumer(environ) as worker:
        worker.wait_for_event("worker_started")
        sign_up_quickly(url)
        own_postgres.postgres.stop()
        failed = worker.wait_for_event("process task failed")
        assert failed["level"] == "error"
        assert failed["task"] == "deliver_email"
        assert "email_id" in failed["payload"]
        assert "OperationalError" in failed["error"]
        assert not smtp.mails
        own_postgres.postgres.start()
        smtp.wait_for("mick@example.com", seconds=60)
        assert worker.popen.poll() is None
    assert len(smtp.mails) == 1


def test_without_postgres_pages_say_so_at_once_and_go_on_when_it_is_back(
    on_own_postgres: Environ, own_postgres: OwnPostgres
) -> None:
    with website(on_own_postgres) as url:
        visitor = Visitor(url)
        visitor.sign_up()
        own_postgres.postgres.stop()
        for attempt in range(3):
            with within(3):
                visitor.open("/signup/sent" if attempt < 2 else "/signup")
                if attempt == 2:
                    visitor.submit("/signup", username="a", email="a@example.com", password="correct horse battery")
            assert visitor.page.status_code == 503
            assert "fixes itself within a minute" in visitor.text
            assert "Retry-After" in visitor.page.headers
        own_postgres.postgres.start()
        visitor.open("/signup/sent")
        assert visitor.page.status_code == 200
        visitor.sign_up(username="ann")
        assert visitor.path == "/signup/sent"


@pytest.mark.parametrize("rest", [0, 7])
def test_a_restarted_postgres_costs_no_request_an_error(
    on_own_postgres: Environ, own_postgres: OwnPostgres, rest: float
) -> None:
    app = create_app(on_own_postgres)
    visitor = Visitor("http://signup.example", app)
    visitor.sign_up()
    own_postgres.postgres.stop()
    own_postgres.postgres.start()
    # A connection that was idle for 7 s is checked first; one that was not is used directly.
    time.sleep(rest)
    visitor.open("/signup/sent")
    assert visitor.page.status_code == 200
    with app.app_context():
        db.engine.dispose()


def test_a_pooler_that_lost_its_postgres_is_a_database_that_is_away(
    on_own_postgres: Environ, own_postgres: OwnPostgres
) -> None:
    url, lost = make_url(own_postgres.url), threading.Event()
    real = str(url.query.get("host") or url.host), url.port or 5432
    with listening(pooler(*real, lost)) as port:
        by_pooler = url.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        app = create_app(on_own_postgres | {"DATABASE_URL": by_pooler})
        visitor = Visitor("http://signup.example", app)
        visitor.sign_up()
        assert visitor.path == "/signup/sent"
        # In transaction mode what one process of the server has prepared, another would be asked for.
        with app.app_context():
            for _ in range(10):
                db.session.execute(text("SELECT 1"))
            assert db.session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
        lost.set()
        for _ in range(3):
            visitor.open("/signup/sent")
            assert visitor.page.status_code == 503
        made = app.test_cli_runner().invoke(args=["users", "create", "root@example.com", "--generate"])
        assert made.exit_code == 3
        assert "database" in made.stderr


def test_each_web_process_is_connected_before_anybody_asks(on_own_postgres: Environ) -> None:
    ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with (
        psycopg.connect(on_own_postgres["DATABASE_URL"], autocommit=True) as connection,
        website({**on_own_postgres, "WEB_CONCURRENCY": "3"}),
    ):
        wait_until(lambda: connection.execute(ours).fetchone() == (3,), "a process is not connected")


def test_the_web_starts_while_its_database_answers_nothing(process_environ: Environ) -> None:
    with listening(black_hole) as port:
        process_environ["DATABASE_URL"] = f"postgresql://mick@127.0.0.1:{port}/signup"
        with website_and_log(process_environ) as (url, process):
            with within(1.5):
                assert Visitor(url).open("/livez").status_code == 200
            # What it tries on its own meanwhile matters to nobody.
            time.sleep(3)
            assert "Traceback" not in process.log


def test_without_postgres_operators_are_told_so_at_once(on_own_postgres: Environ, own_postgres: OwnPostgres) -> None:
    app = create_app(on_own_postgres)
    made = app.test_cli_runner().invoke(args=["users", "create", "root@example.com", "--admin", "--generate"])
    with app.app_context():
        db.engine.dispose()
    with website(on_own_postgres) as url:
        admin = Visitor(url)
        admin.open("/login")
        admin.submit("/login", identifier="root", password=made.stdout.strip())
        assert admin.open("/ops").status_code == 200
        own_postgres.postgres.stop()
        with within(3):
            assert admin.open("/ops").status_code == 503
        assert "We're having trouble right now" in admin.text
        own_postgres.postgres.start()
        assert admin.open("/ops").status_code == 200


@pytest.mark.parametrize(("rest", "at_most"), [(0, 4), (6, 6)])
def test_a_postgres_that_is_frozen_keeps_no_request_for_long(
    on_own_postgres: Environ, own_postgres: OwnPostgres, rest: float, at_most: float
) -> None:
    with website(on_own_postgres) as url:
        visitor = Visitor(url)
        visitor.sign_up()
        # A connection that was idle for 6 s is checked first; one that was not is used directly.
        time.sleep(rest)
        # The open connection, and then a new one, if it was idle long enough to be checked.
        with own_postgres.postgres.frozen(), within(at_most):
            visitor.open("/signup/sent")
        assert visitor.page.status_code == 503
        visitor.open("/signup/sent")
        assert visitor.page.status_code == 200


def test_a_worker_faster_than_the_commit_never_misses_its_user(process_environ: Environ, smtp: Server) -> None:
    environ = process_environ | {"VERIFY_EMAIL_DELAY": "0", "LOG_FORMAT": "json"}
    with website(environ) as url, consumer(environ) as worker:
        worker.wait_for_event("worker_started")
        for n in range(25):
            sign_up_quickly(url, username=f"mick{n}", email=f"mick{n}@example.com")
        for n in range(25):
            smtp.wait_for(f"mick{n}@example.com")
        assert worker.stop() == 0
        assert not worker.events("process task failed")
    assert len(smtp.mails) == 25


@contextmanager
def failing_at(app: Flask, step: str) -> Iterator[None]:
    """Make the database refuse each row of this table, or the commit of each event."""
    at_commit = step == "the commit"
    table = "audit_events" if at_commit else step
    with app.app_context():
        engine = db.engine
    if engine.dialect.name == "sqlite":
        # At the commit a dangling reference is found.
        refuse = "INSERT INTO dangling VALUES (1)" if at_commit else "SELECT RAISE(ABORT, 'injected')"
        begin = [
            "CREATE TABLE nowhere (id INTEGER PRIMARY KEY)",
            "CREATE TABLE dangling (id INTEGER REFERENCES nowhere DEFERRABLE INITIALLY DEFERRED)",
            f"CREATE TRIGGER failing AFTER INSERT ON {table} BEGIN {refuse}; END",
        ]
        end = "DROP TRIGGER failing"
    else:
        kind, moment = ("CONSTRAINT TRIGGER", "DEFERRABLE INITIALLY DEFERRED") if at_commit else ("TRIGGER", "")
        begin = [
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'injected'; END$$",
            f"CREATE {kind} failing AFTER INSERT ON {table} {moment} FOR EACH ROW EXECUTE FUNCTION fail()",
        ]
        end = "DROP FUNCTION fail() CASCADE"
    with engine.begin() as connection:
        for statement in begin:
            connection.exec_driver_sql(statement)
    yield
    with engine.begin() as connection:
        connection.exec_driver_sql(end)


@pytest.mark.parametrize("step", ["users", "verify_emails", "outgoing_emails", "audit_events", "the commit"])
def test_user_and_mail_are_committed_together_or_not_at_all_wherever_it_fails(app: Flask, step: str) -> None:
    def rows() -> tuple[int, ...]:
        with app.app_context():
            tables = (User, VerifyEmail, OutgoingEmail, AuditEvent)
            return tuple(len(db.session.scalars(select(table)).all()) for table in tables)

    with failing_at(app, step):
        for _ in range(3):
            with pytest.raises(DBAPIError, match=r"injected|FOREIGN KEY"):
                make_signup(app, due=False)
        assert rows() == (0, 0, 0, 0)
    make_signup(app, due=False)
    assert rows() == (1, 1, 1, 1)


def tls_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context
