"""Each fault is planted in real parts and found, with a command that works where it is typed."""

from __future__ import annotations

import json
import shlex
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from redis import Redis
from sqlalchemy import update

from harness.processes import consumer, free_port, run_flask, wait_until, within
from harness.proxies import black_hole, listening
from harness.servers import Postgres, Valkey
from harness.smtp_server import Server, hang
from tests.cli.test_cli import flask_mail
from tests.conftest import Backend
from tests.factories import change, make_signup
from tests.system.test_journey import Environ
from webapp import create_app
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.db.outages import DatabaseAway
from webapp.delivery import circuit_breaker, heartbeats, worker
from webapp.delivery.heartbeats import WorkerHeartbeat
from webapp.monitoring import looks, remedies
from webapp.outbox.pause import MailPause
from webapp.paths import ROOT

# This machine may be busy.
pytestmark = pytest.mark.usefixtures("patient_database")

on_servers = pytest.mark.parametrize("backend", ["servers"], indirect=True)
on_embedded = pytest.mark.parametrize("backend", ["embedded"], indirect=True)


def beat(app: Flask) -> None:
    with app.app_context():
        heartbeats.beat(heartbeats.NAME)
        db.session.commit()


def examined(app: Flask, *, beats: bool = True) -> dict[str, Any]:
    """Return doctor's report; each finding says what to type. `beats`: a worker is alive, however slow the test is."""
    if beats:
        with suppress(DatabaseAway):
            beat(app)
    result = flask_mail(app, "doctor", "--json")
    report: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (1 if report["findings"] else 0)
    for told in [*report["findings"], *report["notes"]]:
        assert shlex.split(told["command"])
        assert "\n" not in told["text"]
    return report


def told_by(app: Flask) -> list[dict[str, Any]]:
    report = examined(app)
    return [*report["findings"], *(note for note in report["notes"] if note["check"] != "due")]


def only_finding(app: Flask, *, beats: bool = True) -> tuple[str, str]:
    (finding,) = examined(app, beats=beats)["findings"]
    return finding["check"], finding["text"]


@contextmanager
def changed(environ: dict[str, str], **settings: str) -> Iterator[Flask]:
    """The app with other settings and a live worker."""
    app = create_app(environ | settings)
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def living(app: Flask) -> Flask:
    beat(app)
    return app


def test_a_mail_server_that_is_down_is_found_before_any_mail_is(living: Flask, smtp: Server) -> None:
    assert examined(living)["is_well"]
    smtp.stop()
    check, text = only_finding(living)
    assert check == "mail_server_down"
    assert "Connection refused" in text


def test_a_login_that_is_wrong_is_found_and_the_password_is_not_told(environ: dict[str, str]) -> None:
    with Server(password="right horse") as smtp:
        login = {"MAIL_PORT": str(smtp.port), "MAIL_USERNAME": "signup", "MAIL_PASSWORD": "wrong horse"}
        with changed(environ, **login) as app:
            beat(app)
            check, text = only_finding(app)
    assert check == "mail_server_login"
    assert "535" in text
    assert "horse" not in text


def test_a_sender_that_is_refused_is_found(living: Flask, smtp: Server) -> None:
    smtp.actions["MAIL"] = "553 5.1.8 not your address"
    assert only_finding(living) == (
        "mail_server_sender",
        f"the mail server refuses MAIL_DEFAULT_SENDER: sender: 553 5.1.8 not your address. {looks.SET_IT}",
    )


def test_settings_that_are_right_here_and_wrong_in_the_workers_are_found(environ: dict[str, str]) -> None:
    with Server(password="right horse") as smtp:
        login = {"MAIL_PORT": str(smtp.port), "MAIL_USERNAME": "signup", "COMPOSE_COMMAND": "docker compose"}
        with changed(environ, MAIL_PASSWORD="wrong horse", **login) as app:
            make_signup(app)
            with app.app_context():
                worker.deliver_due(1)
            # Said once, whether the rows find or only note it.
            assert [one["check"] for one in told_by(app)] == ["mail_server_login"]
            with app.app_context():
                db.session.execute(update(circuit_breaker.MailBreaker).values(opened_at=db_now(-61)))
                db.session.commit()
            assert [one["check"] for one in told_by(app)] == ["mail_server_login"]
        with changed(environ, MAIL_PASSWORD="right horse", **login) as app:
            (finding,) = told_by(app)
    assert finding["check"] == "breaker_open"
    assert "wrong password. It works from here, so restart the workers with these settings" in finding["text"]
    assert finding["command"] == "docker compose up -d --force-recreate --no-deps web worker"


def test_that_all_are_refused_is_noted_at_once_and_found_after_a_minute(living: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = "554 5.7.1 we do not like you"
    for number in range(5):
        make_signup(living, username=f"ann{number}", address=f"ann@domain{number}.example")
    with living.app_context():
        for _ in range(5):
            worker.deliver_due(1)
        assert circuit_breaker.is_open()
    report = examined(living)
    assert (report["is_well"], report["findings"]) == (False, [])
    assert "breaker_open" in [note["check"] for note in report["notes"]]
    told = flask_mail(living, "doctor").stdout
    assert "all is well" not in told
    assert "554 5.7.1 we do not like you: flask mail test" in told
    with living.app_context():
        db.session.execute(update(circuit_breaker.MailBreaker).values(opened_at=db_now(-61)))
        db.session.commit()
    check, text = only_finding(living)
    assert check == "breaker_open"
    assert "every email is refused, most recently with recipient: 554 5.7.1 we do not like you" in text
    # An operator who fixes and tests it releases all emails.
    smtp.actions.clear()
    assert flask_mail(living, "test", "ops@example.com").exit_code == 0
    assert "breaker_open" not in json.dumps(examined(living))


def test_a_recipient_that_is_refused_is_noted_and_many_are_found(living: Flask, smtp: Server) -> None:
    smtp.actions["RCPT"] = "550 5.1.1 no such user"
    email_id = make_signup(living)
    with living.app_context():
        worker.deliver_due(1)
    report = examined(living)
    assert report["is_well"]
    (note,) = report["notes"]
    assert note["text"] == "1 email is dead, most recently: 550 5.1.1 no such user"
    dead = {"status": "dead", "finished_at": db_now(), "last_smtp_code": 550, "last_error": "5.1.1 no such user"}
    for number in range(10):
        change(living, make_signup(living, username=f"ann{number}", address=f"ann{number}@example.com"), **dead)
    assert only_finding(living)[0] == "many_dead"
    change(living, email_id, finished_at=db_now(-3601))
    assert examined(living)["findings"] == []


def test_mails_that_wait_are_never_beside_a_word_that_all_is_well(living: Flask) -> None:
    email_id = make_signup(living)
    change(living, email_id, next_attempt_at=db_now(-6))
    told = flask_mail(living, "doctor")
    assert (told.exit_code, told.stdout.splitlines()[0]) == (0, "nothing is broken, but emails are waiting")
    assert "note: 1 email is due, but not sent yet: flask mail stats" in told.stdout
    change(living, email_id, next_attempt_at=db_now(-61))
    assert only_finding(living)[0] == "overdue"


def test_a_pause_is_noted_and_one_that_was_forgotten_is_found(living: Flask) -> None:
    assert flask_mail(living, "pause", "moving").exit_code == 0
    report = examined(living)
    assert (report["is_well"], report["findings"]) == (False, [])
    with living.app_context():
        db.session.execute(update(MailPause).values(paused_at=db_now(-2 * 3600)))
        db.session.commit()
    check, text = only_finding(living)
    assert check == "paused"
    assert text.startswith("all email has been paused for 2 h, by ")
    assert text.endswith(": moving")


def test_that_there_is_no_worker_is_found_also_before_a_mail_is_due(app: Flask) -> None:
    assert only_finding(app, beats=False) == ("no_worker", "no worker is alive")
    make_signup(app)
    assert only_finding(app, beats=False) == ("no_worker", "no worker is alive, and 1 email is due")


def test_a_frozen_worker_is_found_until_another_takes_its_place(app: Flask, process_environ: Environ) -> None:
    # Started separately, so that its command line is a worker's.
    with consumer(process_environ | {"LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}) as frozen:
        frozen.wait_for_event("worker_started")
        pid = frozen.popen.pid
        with app.app_context():
            while not (seen := heartbeats.alive()):
                db.session.rollback()
            assert [beating.pid for beating in seen] == [pid]
            db.session.rollback()
        with app.app_context():
            # Waiting would take half a minute.
            past = db_now(-40)
            db.session.execute(update(WorkerHeartbeat).values(seen_at=past, started_at=past))
            # While this test has the lock, so that the worker is not frozen with it.
            frozen.popen.send_signal(signal.SIGSTOP)
            db.session.commit()
        (finding,) = examined(app, beats=False)["findings"]
        assert finding["check"] == "worker_frozen"
        assert finding["command"] == f"kill -KILL {pid}; huey_consumer huey_worker.huey -w 4 -g TERM"
        beat(app)
        assert examined(app, beats=False)["findings"] == []
        # One that was alive all along does not replace it.
        with app.app_context():
            alive = WorkerHeartbeat.name == heartbeats.NAME
            db.session.execute(update(WorkerHeartbeat).where(alive).values(started_at=db_now(-3600)))
            db.session.commit()
        assert only_finding(app, beats=False)[0] == "worker_frozen"


@on_servers
def test_a_redis_that_is_wrong_down_or_full_is_found(environ: dict[str, str], tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as valkey, ExitStack() as apps:
        app = apps.enter_context(changed(environ, REDIS_URL=valkey.url))
        beat(app)
        assert examined(app)["is_well"]
        with Redis.from_url(valkey.url) as redis:
            redis.config_set("maxmemory", "1")
            check, text = only_finding(app)
            assert check == "queue_full"
            assert "maxmemory" in text
            redis.config_set("maxmemory", "0")
            redis.config_set("save", "1 1")
            # Redis cannot replace a folder by its file.
            file = Path(redis.config_get("dir")["dir"]) / redis.config_get("dbfilename")["dbfilename"]
            file.unlink(missing_ok=True)
            file.mkdir()
            redis.bgsave()
            wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err", "it could save")
            check, text = only_finding(app)
            assert check == "queue_full"
            assert "can't save to its disk" in text
            redis.config_set("stop-writes-on-bgsave-error", "no")
            redis.config_set("requirepass", "open sesame")
        assert only_finding(app)[0] == "queue_wrong"
        wrong = valkey.url.replace("//", "//:open%20sesamee@")
        assert only_finding(apps.enter_context(changed(environ, REDIS_URL=wrong)))[0] == "queue_wrong"
        right = valkey.url.replace("//", "//:open%20sesame@")
        assert examined(apps.enter_context(changed(environ, REDIS_URL=right)))["is_well"]
        valkey.kill()
        assert only_finding(app)[0] == "queue_down"


@on_embedded
def test_a_queue_file_that_cannot_be_used_is_found(living: Flask) -> None:
    file = Path(living.extensions["huey"].storage.filename)
    living.extensions["huey"].storage.close()
    file.write_bytes(b"this is no database" * 100)
    for beside in file.parent.glob(f"{file.name}-*"):
        beside.unlink()
    assert only_finding(living)[0] == "queue_down"


@pytest.mark.parametrize("url", ["postgresql://u@127.0.0.1:{port}/app", "sqlite:///{folder}"])
def test_a_database_that_is_away_is_found_beside_all_else(
    environ: dict[str, str], smtp: Server, tmp_path: Path, url: str
) -> None:
    smtp.stop()
    (tmp_path / "folder").mkdir()
    with changed(environ, DATABASE_URL=url.format(port=free_port(), folder=tmp_path / "folder")) as app:
        checks = [finding["check"] for finding in examined(app)["findings"]]
    assert checks[0] == "database_down"
    assert checks[-1] == "mail_server_down"


def test_a_database_that_is_not_migrated_is_found(backend: Backend, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with backend.empty(tmp_path / "empty") as own, changed(environ, **own) as app:
        (finding,) = examined(app)["findings"]
        assert (finding["check"], finding["command"]) == ("database_unmigrated", "flask db upgrade")


@on_servers
def test_a_database_that_can_only_be_read_or_has_another_encoding_is_found(
    living: Flask, environ: dict[str, str], postgres: Postgres
) -> None:
    with living.app_context():
        db.engine.dispose()
    url = environ["DATABASE_URL"]
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        try:
            assert only_finding(living)[0] == "database_read_only"
        finally:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    other = f"test_{uuid.uuid4().hex}"
    postgres.execute(f"CREATE DATABASE {other} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with changed(environ, DATABASE_URL=postgres.url(other)) as app:
        assert only_finding(app)[0] == "database_encoding"
    postgres.drop(postgres.url(other))


@pytest.mark.parametrize("seconds", [60, -60])
def test_a_clock_that_is_wrong_is_found(living: Flask, process_environ: Environ, seconds: int) -> None:
    wrong = {"PYTHONPATH": str(ROOT / "chaos" / "inside"), "CHAOS_CLOCK_OFFSET": str(seconds)}
    findings = in_a_process(process_environ | wrong)["findings"]
    side = "ahead of" if seconds > 0 else "behind"
    assert f"this machine's clock is 60 s {side} the database's" in [finding["text"] for finding in findings]
    with living.app_context():
        # A worker wrote this before the clock was set back.
        db.session.execute(update(WorkerHeartbeat).values(seen_at=db_now(60)))
        db.session.commit()
    assert only_finding(living, beats=False)[0] == "clock"


def test_what_does_not_answer_holds_the_doctor_up_for_no_longer_than_ten_seconds(
    process_environ: Environ, smtp: Server
) -> None:
    smtp.actions["greeting"] = hang
    with listening(black_hole) as port:
        silent = {
            "DATABASE_URL": f"postgresql://u@127.0.0.1:{port}/app",
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "DATABASE_TIMEOUT": "60",
            "MAIL_TIMEOUT": "60",
        }
        with within(10):
            report = in_a_process(process_environ | silent)
    assert [finding["check"] for finding in report["findings"]] == ["database_silent", "queue_down", "mail_server_down"]


def in_a_process(environ: Environ) -> dict[str, Any]:
    done = run_flask(environ, "mail", "doctor", "--json")
    assert done.returncode == 1, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@on_embedded
def test_commands_are_those_of_the_place(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with changed(environ, COMPOSE_COMMAND="docker compose -f a.yml") as app, app.app_context():
        apply = "docker compose -f a.yml up -d --force-recreate --no-deps web worker"
        assert remedies.apply_settings("mail doctor") == apply
        assert remedies.start_worker() == "docker compose -f a.yml up -d worker"
        assert remedies.replace_worker("elsewhere", 1) == "docker compose -f a.yml restart worker"
        assert remedies.migrate() == "docker compose -f a.yml run --rm migrate"
        assert remedies.flask("mail stats") == "docker compose -f a.yml exec web flask mail stats"
    in_compose = {"DATABASE_URL": "postgresql://signup@postgres/signup", "REDIS_URL": "redis://redis:6379/0"}
    with changed(environ, COMPOSE_COMMAND="docker compose", **in_compose) as app, app.app_context():
        assert remedies.start_database() == "docker compose up -d postgres"
        assert remedies.start_queue() == "docker compose up -d redis"
        assert remedies.queue_info("memory") == "docker compose exec redis redis-cli info memory"
        assert remedies.make_room().startswith("docker compose exec postgres df ")
        assert remedies.who_may_write().startswith("docker compose exec postgres psql -U signup -c ")
    elsewhere = {"DATABASE_URL": "postgresql://signup@db.example/signup", "REDIS_URL": "redis://redsi:6379/0"}
    with changed(environ, COMPOSE_COMMAND="docker compose", **elsewhere) as app, app.app_context():
        again = "docker compose up -d --force-recreate --no-deps web worker"
        assert remedies.start_database() == remedies.start_queue() == again
    with changed(environ) as app, app.app_context():
        assert remedies.start_worker() == heartbeats.START_WORKER
        assert remedies.apply_settings("mail doctor") == "flask mail doctor"
        assert remedies.migrate() == "flask db upgrade"
        for setting in ("SYSTEMD", "UNITS"):
            monkeypatch.setattr(remedies, setting, tmp_path)
        # systemd runs the machine, but not us.
        assert remedies.start_worker() == heartbeats.START_WORKER
        (tmp_path / "signup-worker.service").touch()
        assert remedies.start_worker() == "systemctl restart signup-worker"
        assert remedies.apply_settings("mail doctor") == "systemctl restart signup-web signup-worker"
        assert remedies.set_clock() == "timedatectl set-ntp true"


def test_the_report_names_the_version(living: Flask) -> None:
    assert examined(living)["version"].startswith("1.0.0")
    assert flask_mail(living, "doctor").stderr.startswith("version 1.0.0")
