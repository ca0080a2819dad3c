"""Third-party mail servers accept our email, and have nothing to complain about."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from flask import Flask

from harness.mta import Mta, certificate, dovecot_auth, exim, opensmtpd, postfix, program
from harness.processes import Process, consumer, wait_until
from tests.conftest import Embedded
from tests.factories import attempts, get, make_signup
from webapp.delivery import circuit_breaker
from webapp.delivery.tasks import deliver_later

Environ = Mapping[str, str]

pytestmark = [
    pytest.mark.parametrize("backend", [Embedded.name], indirect=True),
    pytest.mark.timeout(180),
]

Start = Callable[..., AbstractContextManager[Mta]]
SERVERS: dict[str, tuple[str, Start]] = {
    "postfix": ("postfix", postfix),
    "exim": ("exim4", exim),
    "opensmtpd": ("smtpd", opensmtpd),
}


def needs(name: str) -> Start:
    its_program, start = SERVERS[name]
    if not program(its_program):
        pytest.skip(f"{name} is not there, or we are not root")
    return start


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder outside pytest's, which is closed to the users that servers run as."""
    with TemporaryDirectory(prefix="signup-mta-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def start(open_folder: Path, system_environ: Environ) -> Iterator[Callable[..., Mta]]:
    """Start the mail server that the test names, and end it with the test."""
    with ExitStack() as started:
        yield lambda name, **settings: started.enter_context(needs(name)(open_folder, system_environ, **settings))


def worker_environ(process_environ: Environ, mta: Mta, **settings: str) -> Environ:
    return {**process_environ, "MAIL_PORT": str(mta.port), "MAIL_LIMIT_TOTAL": "none", **settings}


@contextmanager
def working(environ: Environ) -> Iterator[Process]:
    """A consumer that is stopped as an operator would: a killed one sends no QUIT."""
    with consumer(environ) as worker:
        yield worker
        assert worker.stop() == 0


def sign_up(app: Flask, name: str) -> uuid.UUID:
    email_id = make_signup(app, username=f"{name}-person", address=f"{name}@example.com")
    with app.app_context():
        deliver_later(email_id)
    return email_id


def states(app: Flask, email_ids: list[uuid.UUID]) -> list[str]:
    return [get(app, email_id).status for email_id in email_ids]


def wait_for_all(app: Flask, email_ids: list[uuid.UUID], seconds: float = 60) -> None:
    wait_until(lambda: set(states(app, email_ids)) <= {"sent", "dead"}, "mails are left", seconds)


@pytest.mark.parametrize("name", SERVERS)
def test_thirty_signups_of_which_nobody_knows_three(
    app: Flask, process_environ: Environ, start: Callable[..., Mta], name: str
) -> None:
    mta = start(name)
    good = [sign_up(app, f"ann{n}") for n in range(27)]
    bad = [sign_up(app, f"gone{n}") for n in range(3)]
    with working(worker_environ(process_environ, mta)):
        wait_for_all(app, good + bad)
    assert states(app, good) == ["sent"] * 27
    assert states(app, bad) == ["dead"] * 3
    assert {len(attempts(app, email_id)) for email_id in good + bad} == {1}
    assert all((attempts(app, email_id)[0].code or 0) >= 500 for email_id in bad)
    assert mta.complaints == []
    # A refused recipient cost no connection.
    assert mta.connections <= 4


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_of_connections_makes_nobody_wait(
    app: Flask, process_environ: Environ, start: Callable[..., Mta], limit: int
) -> None:
    mta = start("postfix", smtpd_client_connection_count_limit=limit)
    sent = [sign_up(app, "ann")]
    with working(worker_environ(process_environ, mta, LOG_FORMAT="json")) as worker:
        wait_for_all(app, sent)
        for n in range(7):
            sent.append(sign_up(app, f"ann{n}"))
            # Each comes while the previous one's connection is idle, which the server counts.
            time.sleep(1.5)
        wait_for_all(app, sent)
        assert worker.events("mail_server_down") == []
    assert [len(attempts(app, email_id)) for email_id in sent] == [1] * 8
    rows = [get(app, email_id) for email_id in sent[1:]]
    assert max((row.sent_at - row.created_at).total_seconds() for row in rows if row.sent_at) <= 2
    assert "too many connections" not in mta.log


def test_two_processes_share_a_server_that_takes_one_connection(
    app: Flask, process_environ: Environ, start: Callable[..., Mta]
) -> None:
    mta = start("postfix", smtpd_client_connection_count_limit=1)
    environ = worker_environ(process_environ, mta, LOG_FORMAT="json")
    with working(environ) as one, working(environ) as other:
        sent = []
        for n in range(16):
            sent.append(sign_up(app, f"ann{n}"))
            # By then either of them may have the connection.
            time.sleep(0.5)
        wait_for_all(app, sent)
        assert one.events("mail_server_down") == other.events("mail_server_down") == []
    with app.app_context():
        assert not circuit_breaker.is_open()


@pytest.mark.parametrize("name", ["postfix", "exim"])
def test_starttls_and_a_login_of_any_script(
    app: Flask, process_environ: Environ, start: Callable[..., Mta], open_folder: Path, name: str
) -> None:
    certificate(open_folder, "localhost")
    both = open_folder / "both.pem"
    with dovecot_auth() as auth:
        mta = start(name, **(postfix_login(both, auth) if name == "postfix" else exim_login(both)))
        environ = worker_environ(
            process_environ,
            mta,
            MAIL_SERVER="localhost",
            MAIL_USE_TLS="true",
            MAIL_USERNAME="mücke",
            MAIL_PASSWORD="Pässwörd€1",
            SSL_CERT_FILE=str(open_folder / "ca.pem"),
        )
        sent = [sign_up(app, f"ann{n}") for n in range(10)]
        with working(environ):
            wait_for_all(app, sent)
    assert states(app, sent) == ["sent"] * 10
    assert mta.complaints == []


def postfix_login(both: Path, auth: int) -> dict[str, object]:
    return {
        "smtpd_tls_chain_files": both,
        "smtpd_tls_security_level": "encrypt",
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": f"inet:127.0.0.1:{auth}",
        "smtpd_tls_auth_only": "yes",
        "smtpd_sender_restrictions": "permit_sasl_authenticated, reject",
    }


def exim_login(both: Path) -> dict[str, object]:
    return {"tls_advertise_hosts": "*", "tls_certificate": both, "acl_smtp_mail": "signed_in"}


def test_a_mail_that_is_too_big_is_dead_at_once(
    app: Flask, process_environ: Environ, start: Callable[..., Mta]
) -> None:
    mta = start("postfix", message_size_limit=2000)
    email_id = sign_up(app, "ann")
    with working(worker_environ(process_environ, mta)):
        wait_for_all(app, [email_id])
    assert [attempt.code for attempt in attempts(app, email_id)] == [552]
    assert get(app, email_id).status == "dead"
