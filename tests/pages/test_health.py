"""What a load balancer asks."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory
from flask import Flask, request
from sqlalchemy import text

from harness.visitor import Visitor
from tests.conftest import Backend
from webapp import create_app
from webapp.db.base import db


def test_a_web_server_is_ready_with_its_database_and_its_queue(visitor: Visitor) -> None:
    assert visitor.open("/livez").json() == {"status": "alive"}
    assert visitor.open("/readyz").json() == {"status": "ready", "database": "up", "broker": "up"}


def test_without_its_queue_it_is_degraded_and_serves(visitor: Visitor, app: Flask, backend: Backend) -> None:
    backend.break_queue(app)
    assert visitor.open("/readyz").status_code == 200
    assert visitor.page.json()["status"] == "degraded"


def test_behind_its_migration_it_is_not_ready_and_past_it_it_is(visitor: Visitor, app: Flask) -> None:
    for revision, status in (("0003", 503), ("9999", 200)):
        with app.app_context():
            db.session.execute(text("UPDATE alembic_version SET version_num = :new"), {"new": revision})
            db.session.commit()
        assert visitor.open("/readyz").status_code == status
    with app.app_context():
        db.session.execute(text("DROP TABLE alembic_version"))
        db.session.commit()
    assert visitor.open("/readyz").status_code == 503


def test_whoever_asks_again_and_again_lets_the_migrations_be_read_once(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor.open("/readyz")

    def read(_self: ScriptDirectory) -> None:
        pytest.fail("read again")

    monkeypatch.setattr(ScriptDirectory, "walk_revisions", read)
    assert visitor.open("/readyz").status_code == 200


def test_forwarded_addresses_count_only_from_trusted_proxies(environ: dict[str, str]) -> None:
    for proxies, address in (("0", "127.0.0.1"), ("1", "203.0.113.9")):
        app = create_app({**environ, "TRUSTED_PROXIES": proxies})
        seen: list[str | None] = []
        app.before_request(lambda: seen.append(request.remote_addr))  # noqa: B023 - called within this turn
        app.test_client().get("/livez", headers={"X-Forwarded-For": "198.51.100.1, 203.0.113.9"})
        assert seen == [address]
