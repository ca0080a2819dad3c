"""The parts that tests run on: real ones, each test with its own."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import select, update

from tests.smtp_server import Server
from tests.visitor import Visitor
from webapp import create_app, delivery
from webapp.clock import db_now
from webapp.config import ROOT
from webapp.delivery import DeliveryFailed
from webapp.extensions import db, mail
from webapp.outbox import OutgoingEmail

SECRET = "for-tests-only-0123456789"  # noqa: S105 - no secret

# They log each request's address and each mail's envelope.
for chatty in ("httpx", "mail.log"):
    logging.getLogger(chatty).setLevel(logging.WARNING)


@pytest.fixture
def smtp() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file at the newest migration, to be copied."""
    path = tmp_path_factory.mktemp("template") / "app.db"
    app = create_app(settings(path, mail_port=1))
    with app.app_context():
        flask_migrate.upgrade(str(ROOT / "migrations"))
        app.extensions["sqlalchemy"].engine.dispose()
    return path


def settings(database: Path, mail_port: int) -> dict[str, str]:
    return {
        "SECRET_KEY": SECRET,
        "DATABASE_URL": f"sqlite:///{database}",
        "PUBLIC_URL": "http://signup.example",
        "MAIL_SERVER": "127.0.0.1",
        "MAIL_PORT": str(mail_port),
        "MAIL_TIMEOUT": "5",
        "APP_NAME": "Acme",
    }


@pytest.fixture
def environ(tmp_path: Path, migrated_database: Path, smtp: Server) -> dict[str, str]:
    """The settings of this test's own database, queue and mail server."""
    database = tmp_path / "app.db"
    shutil.copy(migrated_database, database)
    return settings(database, smtp.port)


@pytest.fixture
def process_environ(environ: dict[str, str]) -> dict[str, str]:
    """The same for a process of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, **environ, "TZ": "UTC", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def app(environ: dict[str, str]) -> Iterator[Flask]:
    app = create_app(environ)
    app.testing = True
    yield app
    mail.close()
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


@pytest.fixture
def visitor(app: Flask) -> Visitor:
    return Visitor("http://signup.example", app)


@pytest.fixture
def another_visitor(app: Flask) -> Visitor:
    """Somebody else, or the same person on the phone."""
    return Visitor("http://signup.example", app)


@pytest.fixture
def send_due(app: Flask) -> Callable[[], None]:
    """Let the delay of every waiting mail be over, and send them."""

    def send() -> None:
        with app.app_context():
            db.session.execute(update(OutgoingEmail).values(next_attempt_at=db_now()))
            db.session.commit()
            for email_id in db.session.scalars(select(OutgoingEmail.id).where(OutgoingEmail.status == "queued")).all():
                with suppress(DeliveryFailed):
                    delivery.deliver(email_id)

    return send
