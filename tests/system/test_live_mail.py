"""A mail server with TLS and a password: a real provider's if asked for, otherwise our own."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import trustme
from flask import Flask
from flask_mail import Attachment

from harness.smtp_server import Server
from tests.cli.test_cli import flask_mail
from tests.smtp.test_replies import server_tls
from webapp import create_app
from webapp.db.base import db
from webapp.extensions import mail
from webapp.paths import ROOT
from webapp.smtp.message import Message

PASSWORD = "abcd efgh ijkl mnop"  # noqa: S105 - as Gmail shows them, and opens nothing


@contextmanager
def started(environ: Mapping[str, str]) -> Iterator[Flask]:
    app = create_app(environ)
    yield app
    mail.close()
    with app.app_context():
        db.engine.dispose()


def send_all_kinds(app: Flask, address: str) -> None:
    """Send an email like the app, and one with every feature of the sending layer; both must be accepted."""
    tested = flask_mail(app, "test", address)
    assert tested.exit_code == 0, tested.output
    assert "accepted as" in tested.stderr
    with app.app_context():
        full = Message(
            subject="Test: copies and an attachment",
            recipients=[address],
            cc=[address],
            bcc=[address],
            reply_to=address,
            body="With copies, a reply address and an attachment.",
            html="<p>With copies, a reply address and an attachment.",
            attachments=[Attachment("note.txt", "text/plain", b"attached")],
        )
        with mail.connect() as connection:
            assert connection.send(full).startswith("250")


@pytest.mark.live_mail
@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_the_mail_server_that_you_use_takes_our_mail(environ: dict[str, str]) -> None:
    """Needs LIVE_MAIL_TO, and the MAIL_ settings as in production."""
    address = os.environ.get("LIVE_MAIL_TO")
    given = {name: value for name, value in os.environ.items() if name.startswith("MAIL_")}
    if not address or "MAIL_SERVER" not in given:
        pytest.skip("not configured: set LIVE_MAIL_TO and the MAIL_ settings, as docs/mail-providers.md says")
    ours = {name: value for name, value in environ.items() if not name.startswith("MAIL_")}
    with started({**ours, **given}) as app:
        send_all_kinds(app, address)


def test_a_server_that_demands_starttls_and_a_password_takes_the_same(environ: dict[str, str]) -> None:
    authority = trustme.CA()
    secure = {
        "MAIL_SERVER": "localhost",
        "MAIL_USE_TLS": "true",
        "MAIL_USERNAME": "shop@example.com",
        "MAIL_PASSWORD": PASSWORD,
        "MAIL_DEFAULT_SENDER": "Shop <shop@example.com>",
    }
    with (
        Server(password=PASSWORD, tls=server_tls(authority, "localhost")) as server,
        started({**environ, **secure, "MAIL_PORT": str(server.port)}) as app,
    ):
        mail.tls = ssl.create_default_context()
        authority.configure_trust(mail.tls)
        send_all_kinds(app, "mick@example.com")
    assert [arrived.recipients for arrived in server.mails] == [["mick@example.com"], ["mick@example.com"] * 3]
    assert {arrived.sender for arrived in server.mails} == {"shop@example.com"}


def test_nothing_is_sent_for_real_unless_that_is_asked_for(request: pytest.FixtureRequest) -> None:
    # This run did not ask for it: otherwise this unmarked test would not be in it.
    chosen = [item for item in request.session.items if item.path == request.path]
    assert chosen
    assert [item.name for item in chosen if item.get_closest_marker("live_mail")] == []
    for settings in (".github/workflows/ci.yml", ".vscode/settings.json"):
        assert "live_mail" in (ROOT / settings).read_text("utf-8")
