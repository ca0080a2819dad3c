"""Signing up and verifying with everything real: gunicorn, huey_consumer, an SMTP server, and a person."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from harness.processes import Process, consumer, free_port, gunicorn, wait_for_port
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.conftest import Backend

Environ = dict[str, str]


@contextmanager
def website_and_log(environ: Environ, *options: str, scheme: str = "http") -> Iterator[tuple[str, Process]]:
    """Run gunicorn; yield its URL, which is also PUBLIC_URL, and the process."""
    port = free_port()
    url = f"{scheme}://localhost:{port}"
    environ["PUBLIC_URL"] = url
    with gunicorn(environ, port, *options) as process:
        wait_for_port(port)
        yield url, process


@contextmanager
def website(environ: Environ, *options: str, scheme: str = "http") -> Iterator[str]:
    with website_and_log(environ, *options, scheme=scheme) as (url, _process):
        yield url


def test_a_person_signs_up_reads_the_mail_confirms_and_is_signed_in(process_environ: Environ, smtp: Server) -> None:
    process_environ["VERIFY_EMAIL_DELAY"] = "1"
    with website(process_environ) as url, consumer(process_environ):
        visitor = Visitor(url)
        # A destination that is too long is ignored, and keeps nobody out.
        assert visitor.open(f"/signup?next=/{'x' * 10_000}").status_code == 200
        assert "xxxx" not in visitor.page.text
        visitor.sign_up()
        assert visitor.path == "/signup/sent"
        assert "mick@example.com" in visitor.text
        mail = smtp.wait_for("mick@example.com")
        assert mail.link.startswith(f"{url}/verify/")
        visitor.open(mail.link)
        visitor.submit("/verify")
        assert visitor.path == "/account"
        assert "Verified" in visitor.text


def test_over_https_without_a_referer_it_works_too(process_environ: Environ, smtp: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    process_environ["VERIFY_EMAIL_DELAY"] = "0"
    pem = str(tmp_path / "server.pem")
    with (
        website(process_environ, "--certfile", pem, "--keyfile", pem, scheme="https") as url,
        consumer(process_environ),
    ):
        visitor = Visitor(url, tls=trusting)
        visitor.sign_up()
        assert "__Host-session" in visitor.http.cookies
        visitor.open(smtp.wait_for("mick@example.com").link)
        visitor.submit("/verify")
        assert visitor.path == "/account"


def test_a_consumer_killed_before_delivery_delivers_when_it_is_started_again(
    process_environ: Environ, smtp: Server
) -> None:
    process_environ["VERIFY_EMAIL_DELAY"] = "2"
    with website(process_environ) as url:
        visitor = Visitor(url)
        with consumer(process_environ | {"LOG_FORMAT": "json"}) as worker:
            worker.wait_for_event("worker_started")
            visitor.sign_up()
            worker.kill()
        assert not smtp.mails
        with consumer(process_environ):
            smtp.wait_for("mick@example.com", seconds=60)
    assert len(smtp.mails) == 1


def test_a_mail_whose_hint_was_lost_arrives_within_a_minute(
    process_environ: Environ, backend: Backend, smtp: Server
) -> None:
    process_environ["VERIFY_EMAIL_DELAY"] = "1"
    with website(process_environ) as url:
        Visitor(url).sign_up()
    backend.lose_hints(process_environ)
    with consumer(process_environ):
        smtp.wait_for("mick@example.com", seconds=60)


@pytest.mark.parametrize("identifier", ["mick19", "MICK@example.com"])
def test_a_verified_person_signs_in_by_name_or_address_and_out(
    visitor: Visitor, another_visitor: Visitor, smtp: Server, send_due: Callable[[], None], identifier: str
) -> None:
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    another_visitor.open("/login")
    another_visitor.submit("/login", identifier=identifier, password=PASSWORD)
    assert another_visitor.path == "/account"
    another_visitor.submit("/logout")
    another_visitor.open("/account")
    assert another_visitor.path == "/login"
