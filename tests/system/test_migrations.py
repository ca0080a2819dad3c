"""The migrations on a database that holds users, while others write to it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import flask_migrate
import httpx
import pytest
from argon2 import PasswordHasher
from flask import Flask
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from harness.processes import Load, consumer, flask, wait_until
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_email_change import another_member, ask
from tests.conftest import Backend, Embedded, send_due_mails, settings
from tests.factories import work
from tests.pages.test_verify import everything
from tests.system.test_journey import website_and_log
from webapp import audit, create_app
from webapp.db import schema
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.paths import ROOT

USERS = 10_000
# The kind of hash that there was from the start, with fast parameters.
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
MIGRATIONS = str(ROOT / "migrations")


@pytest.fixture
def old(tmp_path: Path, backend: Backend, smtp: Server, cheap_passwords: None) -> Iterator[Flask]:
    """An app whose database is at the first migration, with ten thousand users."""
    with backend.empty(tmp_path) as own:
        app = create_app({**settings(smtp.port), **own})
        with app.app_context():
            flask_migrate.upgrade(MIGRATIONS, "0001")
            rows = [
                {
                    "username": f"user{n}",
                    "full_name": f"User {n}",
                    "email": f"User{n}@Example.com",
                    "password_hash": "a hash",
                }
                for n in range(USERS - 3)
            ]
            hashed = HASHER.hash(PASSWORD)
            rows += [
                {"username": "mick19", "full_name": "Mick", "email": "mick@example.com", "password_hash": hashed},
                {"username": "Ann", "full_name": "Ann", "email": "ann@example.com", "password_hash": hashed},
                # Another spelling of the same address and the same name.
                {"username": "ann", "full_name": "Ann", "email": "Ann@Example.COM", "password_hash": hashed},
            ]
            db.session.execute(
                text(
                    "INSERT INTO users (username, full_name, email, password_hash)"
                    " VALUES (:username, :full_name, :email, :password_hash)"
                ),
                rows,
            )
            db.session.commit()
        yield app
        with app.app_context():
            db.engine.dispose()


def upgrade(app: Flask) -> None:
    with app.app_context():
        flask_migrate.upgrade(MIGRATIONS)


def downgrade(app: Flask, revision: str = "0001") -> None:
    with app.app_context():
        flask_migrate.downgrade(MIGRATIONS, revision)


def rows(app: Flask, query: str) -> list[Any]:
    with app.app_context():
        return [tuple(row) for row in db.session.execute(text(query))]


EVERYBODY = "SELECT id, username, full_name, email, password_hash FROM users ORDER BY id"


def test_nobody_is_lost_on_the_way_up_and_down(old: Flask) -> None:
    before = rows(old, EVERYBODY)
    upgrade(old)
    assert rows(old, EVERYBODY) == before
    assert rows(old, "SELECT count(*) FROM users WHERE email_verified_at IS NULL AND purge_at IS NULL") == [(USERS,)]
    assert rows(old, "SELECT count(*) FROM users WHERE email_key = '' OR username_key = ''") == [(0,)]
    assert rows(old, "SELECT count(*) FROM users WHERE email_key = 'ann@example.com'") == [(2,)]
    downgrade(old)
    assert rows(old, EVERYBODY) == before
    upgrade(old)
    assert rows(old, EVERYBODY) == before


def test_the_models_are_what_the_migrations_make(old: Flask) -> None:
    upgrade(old)
    with old.app_context():
        flask_migrate.check(MIGRATIONS)


def test_a_new_database_does_not_read_all_mails_to_find_one(backend: Backend, tmp_path: Path, smtp: Server) -> None:
    """Statements prepared while a table is new serve thousands of emails, until PostgreSQL analyzes it again."""
    with backend.empty(tmp_path) as own:
        app = create_app({**settings(smtp.port), **own})
        upgrade(app)
        explain = "EXPLAIN" if "REDIS_URL" in own else "EXPLAIN QUERY PLAN"
        one = "DELETE FROM outgoing_emails WHERE id = 'f47ac10b58cc4372a5670e02b2c3d479'"
        plan = str(rows(app, f"{explain} {one}"))
        with app.app_context():
            db.engine.dispose()
    assert "outgoing_emails" in plan
    assert "Seq Scan" not in plan
    assert "SCAN" not in plan


def test_the_way_down_keeps_one_row_an_address_and_says_what_it_dropped(
    old: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(old)
    insert = (
        "INSERT INTO users (username, username_key, full_name, email, email_key, password_hash, email_verified_at)"
        " VALUES ('{}', '{}', '', 'new@example.com', 'new@example.com', 'x', {})"
    )
    with old.app_context():
        db.session.execute(text(insert.format("first", "first", "NULL")))
        db.session.execute(text(insert.format("second", "second", "CURRENT_TIMESTAMP")))
        db.session.execute(text(insert.replace("new@", "other@").format("second", "second", "NULL")))
        ((other,),) = db.session.execute(text("SELECT id FROM users WHERE email = 'other@example.com'"))
        # Even the name that it would get is taken.
        taken = f"second-{other}"
        db.session.execute(text(insert.replace("new@", "third@").format(taken, taken, "NULL")))
        db.session.commit()
    downgrade(old)
    assert rows(old, "SELECT username FROM users WHERE email = 'new@example.com'") == [("second",)]
    ((name,),) = rows(old, "SELECT username FROM users WHERE email = 'other@example.com'")
    assert name.startswith("second-")
    assert rows(old, "SELECT count(*) FROM users") == [(USERS + 3,)]
    assert "dropped 1 signups whose address has another row" in caplog.text
    assert "renamed 1 users whose username was taken" in caplog.text


@pytest.fixture
def lived_in(tmp_path: Path, backend: Backend, smtp: Server) -> Iterator[Flask]:
    """An app with a row in each table that numbers its rows, just before those numbers became unique forever."""
    with backend.empty(tmp_path) as own:
        app = create_app({**settings(smtp.port), **own})
        upgrade(app)
        member = another_member(app, lambda: send_due_mails(app), smtp, "mick19", "mick@example.com")
        waiting = Visitor("http://signup.example", app)
        waiting.sign_up(username="ann", email="ann@example.com")
        waiting.submit("/signup/code", code="000000")
        ask(member)
        with app.app_context():
            # For an account that is gone, and for an operator who still exists.
            audit.record("account_deleted", detail="user 41")
            db.session.add(audit.AuditEvent(at=db_now(), action="paused", actor="user 57"))
            db.session.add(audit.AuditEvent(at=db_now(), action="paused", actor="root@host"))
            db.session.commit()
        downgrade(app, "0017")
        yield app
        with app.app_context():
            db.engine.dispose()


def shape(app: Flask) -> Any:
    """The tables, rules and indexes, except for SQLite's spelling of them."""
    with app.app_context():
        tables = rows(app, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        of_tables = {
            name: [sorted(rows(app, f"PRAGMA {of}({name})")) for of in ("table_info", "foreign_key_list")]
            for (name,) in tables
        }
        indexes = "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
        return of_tables, rows(app, indexes)


def test_numbering_rows_once_keeps_every_row_rule_and_index(lived_in: Flask) -> None:
    is_sqlite = "sqlite" in lived_in.config["SQLALCHEMY_DATABASE_URI"]

    def state() -> Any:
        kept = everything(lived_in)
        del kept["alembic_version"]
        return kept, shape(lived_in) if is_sqlite else None

    before = state()
    assert all(
        before[0][name] for name in ("users", "user_sessions", "audit_events", "code_tries", "delivery_attempts")
    )
    with lived_in.app_context():
        flask_migrate.upgrade(MIGRATIONS, "0018")
    assert state() == before
    downgrade(lived_in, "0017")
    assert state() == before
    upgrade(lived_in)
    # Rows that refer to a user are still deleted with it.
    with lived_in.app_context():
        db.session.execute(text("DELETE FROM users WHERE username = 'mick19'"))
        db.session.commit()
    assert rows(lived_in, "SELECT count(*) FROM user_sessions") == [(0,)]
    assert rows(lived_in, "SELECT count(*) FROM users") == [(1,)]


@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_numbers_go_on_behind_all_that_is_known_to_have_been_given_out(lived_in: Flask) -> None:
    upgrade(lived_in)
    Visitor("http://signup.example", lived_in).sign_up(username="new", email="new@example.org")
    assert rows(lived_in, "SELECT max(id) FROM users") == [(58,)]


def test_links_outlive_the_column_that_says_where_they_lead(
    app: Flask, visitor: Visitor, send_due: Callable[[], None], smtp: Server
) -> None:
    visitor.open("/signup?next=/account/sessions")
    typed: dict[str, Any] = {"username": "mick19", "full_name": "", "email": "mick@example.com", "password": PASSWORD}
    visitor.submit("/signup?next=/account/sessions", **typed)
    leads_to = "SELECT purpose, leads_to FROM verify_emails"
    assert rows(app, leads_to) == [("signup", "/account/sessions")]
    downgrade(app, "0020")
    assert rows(app, "SELECT purpose, used_at FROM verify_emails") == [("signup", None)]
    with app.app_context(), pytest.raises(DBAPIError):
        db.session.execute(text(leads_to))
    upgrade(app)
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"


OWN_COLUMNS = """
    company: Mapped[str | None] = mapped_column(String(100), index=True)
    trial_ends_at: Mapped[datetime | None]
"""
OWN_TABLE = """

class Project(Model):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(50), unique=True)
    begun_at: Mapped[datetime] = mapped_column(server_default=func.current_timestamp())
    ended_at: Mapped[datetime | None]
"""
MIGRATE = """
from webapp import create_app

commands = create_app().test_cli_runner()
for command in (["migrate", "-m", "add projects"], ["upgrade"], ["check"], ["downgrade"], ["upgrade"]):
    done = commands.invoke(args=["db", *command])
    assert done.exit_code == 0, (command, done.output, done.exception)
"""


def test_what_flask_db_migrate_writes_runs_up_and_down(
    app: Flask, visitor: Visitor, process_environ: dict[str, str], tmp_path: Path
) -> None:
    visitor.sign_up()
    tree = tmp_path / "tree"
    for folder in ("webapp", "own", "migrations"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    users = tree / "webapp" / "accounts" / "users.py"
    code = users.read_text("utf-8").replace("    role: Mapped[str]", f"{OWN_COLUMNS}    role: Mapped[str]")
    code = code.replace("\n\ndef set_locale(", f"{OWN_TABLE}\n\ndef set_locale(").replace(
        "    Index,", "    ForeignKey,\n    Index,"
    )
    users.write_text(code, "utf-8")
    run = partial(subprocess.run, cwd=tree, env=process_environ, capture_output=True, text=True, check=False)
    done = run([sys.executable, "-c", MIGRATE])
    assert done.returncode == 0, done.stderr
    assert rows(app, "SELECT username, company, trial_ends_at FROM users") == [("mick19", None, None)]
    assert rows(app, "SELECT count(*) FROM projects") == [(0,)]
    (migration,) = (tree / "migrations" / "versions").glob("*_add_projects.py")
    assert "webapp" not in migration.read_text("utf-8")
    # As `make format` and `make check` require it.
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["check", "--fix"], ["format"], ["check"]):
        checked = run([ruff, *command, migration])
    assert checked.returncode == 0, checked.stdout


def test_users_from_before_keep_their_names_and_can_verify(old: Flask, smtp: Server) -> None:
    with old.app_context():
        # At full cost, as it was then; all the others are fast.
        give = text("UPDATE users SET password_hash = :hash WHERE username = 'mick19'")
        db.session.execute(give, {"hash": PasswordHasher().hash(PASSWORD)})
        db.session.commit()
    upgrade(old)
    stranger = Visitor("http://signup.example", old)
    stranger.sign_up(username="MICK19", email="stranger@example.com")
    assert "That username is taken" in stranger.text
    mick = Visitor("http://signup.example", old)
    mick.open("/login")
    mick.submit("/login", identifier="mick19", password=PASSWORD)
    assert mick.path == "/signup/sent"
    assert "isn't confirmed yet" in mick.text
    mick.submit("/signup/resend")
    send_due_mails(old)
    mick.open(smtp.wait_for("mick@example.com").link)
    mick.submit("/verify")
    assert mick.path == "/account"
    assert rows(old, "SELECT purge_at FROM users WHERE username = 'mick19'") == [(None,)]


def test_of_two_who_share_a_key_each_signs_in_by_the_own_spelling(old: Flask) -> None:
    with old.app_context():
        for name, password in (("Bob", "the first of them"), ("bob", "the second of them")):
            add_old_user(name, f"{name}@example.com", password)
    upgrade(old)
    for name, password in (("Bob", "the first of them"), ("bob", "the second of them")):
        for identifier in (name, f"{name}@example.com"):
            visitor = Visitor("http://signup.example", old)
            visitor.open("/login")
            visitor.submit("/login", identifier=identifier, password=password)
            assert visitor.path == "/signup/sent", identifier


def test_odd_users_from_before_can_sign_in_and_a_stranger_cannot_shut_them_out(old: Flask) -> None:
    odd = [
        ("at@name", "at@example.com"),
        (" spacy ", "spacy@example.com"),
        ("jürgen", "jürgen@example.com"),
        ("root", "root"),
        ("\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 20, "long@example.com"),
    ]
    with old.app_context():
        for name, address in odd:
            add_old_user(name, address, PASSWORD)
    upgrade(old)
    Visitor("http://signup.example", old).sign_up(username="stranger", email="spacy@example.com", password="x" * 9)
    for name, address in odd:
        for identifier in (name, address):
            visitor = Visitor("http://signup.example", old)
            visitor.open("/login")
            visitor.submit("/login", identifier=identifier, password=PASSWORD)
            assert visitor.path == "/signup/sent", identifier
            assert visitor.page.status_code == 200


def test_who_signs_up_by_old_code_after_the_migration_can_sign_in(old: Flask) -> None:
    upgrade(old)
    with old.app_context():
        add_old_user("late", "Late@example.com", PASSWORD)
    work(old)
    for identifier in ("late", "late@example.com"):
        visitor = Visitor("http://signup.example", old)
        visitor.open("/login")
        visitor.submit("/login", identifier=identifier, password=PASSWORD)
        assert visitor.path == "/signup/sent"


def add_old_user(username: str, address: str, password: str) -> None:
    """Insert a row as the code of the first migration did."""
    row = {"username": username, "email": address, "hash": HASHER.hash(password)}
    db.session.execute(
        text("INSERT INTO users (username, full_name, email, password_hash) VALUES (:username, '', :email, :hash)"),
        row,
    )
    db.session.commit()


def test_of_two_spellings_the_first_to_prove_the_address_has_it(old: Flask, smtp: Server) -> None:
    upgrade(old)
    ann = Visitor("http://signup.example", old)
    ann.open("/login")
    # Both rows match the name's key; the newest one wins.
    ann.submit("/login", identifier="ann@example.com", password=PASSWORD)
    ann.submit("/signup/resend")
    send_due_mails(old)
    (mail,) = smtp.mails
    ann.open(mail.link)
    ann.submit("/verify")
    assert ann.path == "/account"
    assert rows(old, "SELECT count(*) FROM users WHERE email_key = 'ann@example.com'") == [(2,)]


# Not on SQLite, which has one writer at a time.
@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_no_writer_waits_long_for_a_migration(old: Flask) -> None:
    with old.app_context():
        engine = create_engine(db.engine.url, **old.config["SQLALCHEMY_ENGINE_OPTIONS"])
    for migrate in (upgrade, downgrade):
        with Load() as load, slowest_write(engine) as slowest:
            migrate(old)
        assert slowest["writes"] > 5
        assert slowest["seconds"] < load.slowness
    engine.dispose()


class slowest_write:  # noqa: N801 - reads as what it measures
    """While open, another connection writes to `users` as fast as it can, like old code."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.found = {"seconds": 0.0, "writes": 0}
        self.stop = threading.Event()

    def __enter__(self) -> dict[str, float]:
        self.thread = threading.Thread(target=self._write)
        self.thread.start()
        return self.found

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def _write(self) -> None:
        insert = text("INSERT INTO users (username, full_name, email, password_hash) VALUES (:name, '', :email, 'x')")
        change = text("UPDATE users SET full_name = 'changed' WHERE id = :id")
        with self.engine.connect() as connection:
            while not self.stop.is_set():
                begun = time.perf_counter()
                name = f"writer{begun}"
                connection.execute(insert, {"name": name, "email": f"{name}@example.com"})
                connection.execute(change, {"id": 1 + self.found["writes"] % USERS})
                connection.commit()
                self.found["seconds"] = max(self.found["seconds"], time.perf_counter() - begun)
                self.found["writes"] += 1


# Rules of squawk that we have a reason not to follow.
NOT_FOR_US = {
    "ban-drop-constraint": "the point of it: an address belongs to whoever proves it",
    "prefer-text-field": "a limit on what people type is a promise to the pages",
    "prefer-bigint-over-int": "two thousand million users are enough",
    "prefer-bigint-over-smallint": "the same",
    "prefer-identity": "the ORM's own choice, the same on SQLite",
    "prefer-robust-stmts": "Alembic knows where it stopped",
    "require-timeout-settings": "env.py sets lock_timeout for the whole connection",
    "adding-serial-primary-key-field": "only in new tables",
}


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_no_statement_is_one_that_squawk_warns_of(old: Flask, tmp_path: Path) -> None:
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        # Only `users` holds rows at that point: a new table has no writers who could be blocked.
        if re.match(r"\s*(CREATE|ALTER|DROP)\b.*\b(ON|TABLE|REFERENCES) users\b", statement, re.DOTALL):
            statements.append(statement.strip())

    with old.app_context():
        event.listen(db.engine, "before_cursor_execute", note)
    upgrade(old)
    assert len(statements) >= 12
    (tmp_path / "upgrade.sql").write_text(";\n".join(statements) + ";\n")
    checked = subprocess.run(
        [Path(sys.executable).with_name("squawk"), f"--exclude={','.join(NOT_FOR_US)}", tmp_path / "upgrade.sql"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_of_two_upgrades_at_once_one_waits_for_the_other(
    backend: Backend, tmp_path: Path, system_environ: dict[str, str]
) -> None:
    with backend.empty(tmp_path) as own, ExitStack() as running:
        environ = {**system_environ, **settings(mail_port=1), **own}
        upgrades = [running.enter_context(flask(environ, "db", "upgrade")) for _ in range(3)]
        assert [upgrade.popen.wait(100) for upgrade in upgrades] == [0, 0, 0], [one.log for one in upgrades]
        # Each migration ran once, in either process.
        done = re.findall(r"Running upgrade \w* ?-> (\w+)", "".join(upgrade.log for upgrade in upgrades))
        assert sorted(done) == sorted(schema.migrations().known)


def test_web_and_worker_wait_in_front_of_a_database_that_is_not_migrated(
    backend: Backend, tmp_path: Path, system_environ: dict[str, str], smtp: Server
) -> None:
    with backend.empty(tmp_path) as own:
        environ = {**system_environ, **settings(smtp.port), **own, "LOG_FORMAT": "json", "WEB_CONCURRENCY": "1"}
        environ |= {"VERIFY_EMAIL_DELAY": "0"}
        with website_and_log(environ) as (url, web), consumer(environ) as worker:
            for process in (web, worker):
                assert process.wait_for_event("database_down")["command"] == "flask db upgrade"
            assert httpx.get(f"{url}/readyz").status_code == 503
            assert httpx.get(f"{url}/readyz").json()["database"].endswith(": flask db upgrade")
            assert httpx.get(f"{url}/metrics").status_code == 503
            # A database that is behind is also reported and waited for.
            for revision in ("0018", "head"):
                with flask(environ, "db", "upgrade", revision) as upgrade:
                    assert upgrade.popen.wait(60) == 0, upgrade.log
                if revision != "head":
                    wait_until(lambda: "at migration 0018" in httpx.get(f"{url}/readyz").text, "it is not told")
                    assert not worker.events("database_up")
            wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200, "the web is not ready", 30)
            visitor = Visitor(url)
            visitor.sign_up()
            assert visitor.path == "/signup/sent"
            smtp.wait_for("mick@example.com", seconds=30)
            for process in (web, worker):
                process.wait_for_event("database_up")
                assert len(process.events("database_down")) == 1
                assert "Traceback" not in process.log


def test_a_test_that_fails_shows_no_migrations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Embedded(tmp_path)
    assert capsys.readouterr().err == ""
