"""Health checks for load balancers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from flask import Flask, request
from redis import Redis
from sqlalchemy import text

from harness.visitor import Visitor
from tests.conftest import Backend
from webapp import create_app
from webapp.db import schema
from webapp.db.base import db
from webapp.paths import ROOT


def test_a_web_server_is_ready_with_its_database_and_its_queue(visitor: Visitor) -> None:
    assert visitor.open("/livez").json() == {"status": "alive"}
    assert visitor.open("/readyz").json() == {"status": "ready", "database": "up", "broker": "up"}


def test_without_its_queue_it_is_degraded_and_serves(visitor: Visitor, app: Flask, backend: Backend) -> None:
    backend.break_queue(app)
    assert visitor.open("/readyz").status_code == 200
    assert visitor.page.json()["status"] == "degraded"


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_a_queue_that_is_full_is_down_until_it_takes_a_hint_again(
    app: Flask, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    visitor = Visitor("http://signup.example", app)
    breaker = app.extensions["huey"].breaker
    with Redis.from_url(environ["REDIS_URL"]) as redis:
        redis.config_set("maxmemory", "1")
        try:
            # It answers reads all the while.
            for _ in range(3):
                assert visitor.open("/readyz").json()["broker"] == "down"
                with breaker:
                    app.extensions["huey"].storage.queue_size()
        finally:
            redis.config_set("maxmemory", "0")
    assert visitor.open("/readyz").json()["broker"] == "up"
    assert [caplog.text.count(event) for event in ("broker_down", "broker_up")] == [1, 1]


def test_behind_its_migration_it_is_not_ready_and_past_it_it_is(visitor: Visitor, app: Flask) -> None:
    for revision, status in (("0003", 503), ("9999", 200)):
        with app.app_context():
            db.session.execute(text("UPDATE alembic_version SET version_num = :new"), {"new": revision})
            db.session.commit()
        assert visitor.open("/readyz").status_code == status
        if status == 503:
            told = visitor.page.json()["database"]
            assert told.startswith("it is at migration 0003")
            assert told.endswith(": flask db upgrade")
    with app.app_context():
        db.session.execute(text("DROP TABLE alembic_version"))
        db.session.commit()
    assert visitor.open("/readyz").status_code == 503
    assert visitor.page.json()["database"].endswith(": flask db upgrade")


@pytest.mark.parametrize(
    ("file", "command"),
    [("new.db", "docker compose run --rm migrate"), ("", "docker compose exec web flask mail doctor")],
    ids=["unmigrated", "no file"],
)
def test_in_compose_an_outage_is_logged_with_a_command_that_works_there(
    environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, command: str
) -> None:
    in_compose = {"DATABASE_URL": f"sqlite:///{tmp_path / file}", "COMPOSE_COMMAND": "docker compose"}
    page = Visitor("http://signup.example", create_app({**environ, **in_compose})).open("/readyz")
    assert page.status_code == 503
    if file:
        assert page.json()["database"].endswith(f": {command}")
    assert re.search(rf"database_down .*command='{command}'", capsys.readouterr().err)


def test_whoever_asks_again_and_again_lets_the_migrations_be_read_once(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    visitor.open("/readyz")
    monkeypatch.setattr(schema, "VERSIONS", tmp_path / "nowhere")
    assert visitor.open("/readyz").status_code == 200


def test_the_migrations_are_those_that_alembic_knows() -> None:
    script = ScriptDirectory(str(ROOT / "migrations"))
    known = frozenset(revision.revision for revision in script.walk_revisions())
    assert schema.migrations() == schema.Migrations(known, str(script.get_current_head()))


def test_forwarded_addresses_count_only_from_trusted_proxies(environ: dict[str, str]) -> None:
    for proxies, address in (("0", "127.0.0.1"), ("1", "203.0.113.9")):
        app = create_app({**environ, "TRUSTED_PROXIES": proxies})
        seen: list[str | None] = []
        app.before_request(lambda: seen.append(request.remote_addr))  # noqa: B023 - called within this turn
        app.test_client().get("/livez", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.9"})
        assert seen == [address]
