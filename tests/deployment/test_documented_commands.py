"""Every command line in the documents can be typed, and those that can run here do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path
from textwrap import dedent
from urllib.parse import urlsplit

import httpx
import pytest
from dotenv import dotenv_values
from flask import Flask
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import delete

from harness.processes import BIN, Process, flask, free_port, wait_for_port, wait_until
from harness.smtp_server import Server
from tests.conftest import migrate, settings
from tests.deployment import shell_lines
from tests.deployment.known_programs import CHECKS, LEFT_OUT, POSTGRES_PROGRAMS, Wrong, check
from tests.deployment.shell_lines import FENCE, commands_in
from tests.factories import get, make_signup
from tests.test_docs import DOCUMENTS
from tests.test_operations import STRONG
from webapp import create_app
from webapp.db.base import db
from webapp.delivery import heartbeats
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.paths import ROOT

lines_of = partial(shell_lines.lines_of, programs=CHECKS)

# The changelog's old commands need not work today.
PLACES = [*(one for one in DOCUMENTS if one != "CHANGELOG.md"), "docs/operations/alerts.yml"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    database = tmp_path_factory.mktemp("none") / "app.db"
    return create_app({**settings(mail_port=1), "DATABASE_URL": f"sqlite:///{database}"})


@pytest.mark.parametrize("document", PLACES)
def test_each_command_of_a_document_can_be_typed(document: str, ours: Flask) -> None:
    wrong = []
    for line in lines_of(document):
        for words in commands_in(line):
            try:
                check(words, ours)
            except Wrong as error:
                wrong.append(f"{line}: {error}")
    assert "\n".join(wrong) == ""


@pytest.mark.parametrize(
    "line",
    [
        "flask mail list --stauts dead",
        "flask mail lsit",
        "flask users lock 7 8",
        "make chaoss",
        "docker-compose restart wroker",
        "docker compose up --detached web",
        "docker-compose exec -T web flask mail doctor --now",
        'docker wait "$(docker-compose ps -q migrat)"',
        "docker-compose up -d --scale wroker=3",
        "docker-compose exec sentinel-1 redis-cli ping",
        "systemctl restart signup-wbe",
        "journalctl -u signup-wbe",
        "systemd-run --pipe flask mail doctr",
        "gunicorn wsgi:app --bnid 127.0.0.1:8000",
        "gunicorn wsgi:application",
        "huey_consumer huey_worker.huey -w four",
        "pg_dump --fromat=custom",
        "curl http://127.0.0.1:8000/redyz",
        "cp examples/systemd/*.servce /etc/systemd/system/",
        "true && launch-it",
    ],
)
def test_what_cannot_be_typed_is_found(line: str, ours: Flask) -> None:
    with pytest.raises(Wrong):  # noqa: PT012 - whichever of the line's commands it is
        for words in commands_in(line):
            check(words, ours)


def examples_of_settings() -> dict[str, str]:
    """Return each text that people copy into an .env; for .env.example, with every setting."""
    manual = re.sub(r"^#(?=[A-Z_]+=)", "", (ROOT / ".env.example").read_text("utf-8"), flags=re.MULTILINE)
    providers = FENCE.findall((ROOT / "docs" / "mail-providers.md").read_text("utf-8"))
    blocks = {lines.split()[0]: dedent(lines) for _, lines in providers if lines.lstrip().startswith("MAIL_SERVER=")}
    assert len(blocks) == 2
    return {".env.example": manual, **blocks}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in examples_of_settings().items()])
def test_settings_are_written_so_that_everybody_reads_the_same(text: str, tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(text)
    shell = ["bash", "-c", "set -eau; unset BASH_ENV; . ./.env; exec env --null"]
    done = subprocess.run(shell, cwd=tmp_path, env={}, capture_output=True, text=True, check=True)
    sourced = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    ours = dotenv_values(file)
    assert len(ours) > 4
    assert {name: sourced.get(name) for name in ours} == ours
    # systemd has no comments after a value.
    assert [line for line in text.splitlines() if re.search(r"^[A-Z_]+=.*\s#", line)] == []


def flask_lines() -> list[str]:
    """Return each distinct `flask` command that is written out in full, with or without a container."""
    lines: dict[str, None] = {}
    for document in PLACES:
        for line in lines_of(document):
            for words in commands_in(line):
                if "flask" in words and LEFT_OUT not in line:
                    lines[shlex.join(words[words.index("flask") + 1 :])] = None
    # Nobody types a group alone, or a command that is only mentioned without its arguments.
    return [line for line in lines if line not in {"", "mail", "users", "users create", "mail show"}]


# Each has its own tests on both backends.
@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_each_flask_command_does_what_it_is_typed_for(app: Flask) -> None:
    lines = flask_lines()
    assert len(lines) > 30
    runner = app.test_cli_runner()
    assert runner.invoke(args=["users", "create", "ann@example.com", "--generate"]).exit_code == 0
    wrong = []
    for number, line in enumerate(lines):
        email_id = make_signup(app, username=f"mara{number}", address="mara@example.com", due=False)
        stands_for = {"WHO": str(get(app, email_id).user_id), "ID": str(email_id), "NAME": "ann"}
        stands_for |= {"7": stands_for["WHO"], "3fa8": stands_for["ID"], "ADDRESS": "ann@example.com"}
        words = [stands_for.get(word, word) for word in shlex.split(line)]
        result = runner.invoke(args=words, input=f"{STRONG}\n{STRONG}\n" if "create" in words else "y\n")
        # 1 is for nothing to do: no dead email, no worker.
        if result.exit_code not in {0, 1} or not isinstance(result.exception, SystemExit | None):
            wrong.append(f"{line}: {result.exit_code}, {result.exception!r}, {result.output}")
    assert "\n".join(wrong) == ""


def fence_with(document: str, beginning: str) -> str:
    """Return the lines of the one shell fence that begins like this."""
    (found,) = [fence[2] for fence in FENCE.finditer((ROOT / document).read_text("utf-8")) if beginning in fence[2]]
    return found


def test_programs_start_as_they_are_written_and_answer(
    tmp_path: Path, system_environ: dict[str, str], smtp: Server
) -> None:
    database = f"sqlite:///{tmp_path / 'app.db'}"
    migrate({"DATABASE_URL": database})
    environ = {**system_environ, **settings(smtp.port), "DATABASE_URL": database}
    app, port = create_app(environ), free_port()

    def is_a_worker_alive() -> bool:
        # A look that kept its transaction open would keep the worker from writing that it is.
        with app.app_context():
            return bool(heartbeats.alive())

    lines = {line.partition("#")[0].strip() for document in PLACES for line in lines_of(document)}
    # Without --bind it listens on PORT: the Procfile's test starts that one.
    (server,) = [line.replace(":8000", f":{port}") for line in lines if line.startswith("gunicorn wsgi:app --bind")]
    (worker,) = [line for line in lines if line.startswith("huey_consumer")]
    asked = {urlsplit(url[0]).path for line in lines if (url := re.search(r"http://\S+:8000/\w+", line))}
    assert asked == {"/livez", "/readyz"}
    with (
        Process(*shlex.split(f"{BIN}/{server}"), environ=environ) as web,
        Process(*shlex.split(f"{BIN}/{worker}"), environ=environ) as consumer,
    ):
        wait_for_port(port)
        for path in asked:
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
        wait_until(is_a_worker_alive, "no worker is alive")
        assert (consumer.stop(), web.stop()) == (0, 0)
    with app.app_context():
        db.engine.dispose()


def run(script: str, environ: dict[str, str], folder: Path) -> str:
    """Run them in a shell, until something fails."""
    script = script.replace("signup.dump", str(folder / "signup.dump"))
    environ = {**environ, "PATH": os.pathsep.join([str(POSTGRES_PROGRAMS), str(BIN), environ["PATH"]])}
    done = subprocess.run(["bash", "-ec", script], env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_a_backup_is_made_tried_and_restored_as_it_is_written(
    app: Flask, process_environ: dict[str, str], tmp_path: Path
) -> None:
    make_signup(app)
    login = conninfo_to_dict(process_environ["DATABASE_URL"])
    # As on a machine where PostgreSQL is found without being named.
    environ = {**process_environ, "PGHOST": str(login["host"]), "PGUSER": str(login["user"])}
    dump, is_whole = (line for line in fence_with("docs/deploy.md", "pg_dump").splitlines() if "docker" not in line)
    run(f"{dump}\n{is_whole}", environ, tmp_path)
    # It says so if a dump is incomplete.
    whole = (tmp_path / "signup.dump").read_bytes()
    (tmp_path / "signup.dump").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        run(is_whole, environ, tmp_path)
    (tmp_path / "signup.dump").write_bytes(whole)
    told = ""
    for line in fence_with("docs/deploy.md", "createdb trial").splitlines():
        if "flask" not in line:
            run(line, environ, tmp_path)
        for setting, arguments in re.findall(r"DATABASE_URL=(\S+) flask ([\w ]+)", line):
            with flask({**environ, "DATABASE_URL": setting}, *arguments.split()) as command:
                assert command.popen.wait(60) == 0
                told += command.log
    assert re.search(r"queued\s+1", told)
    assert "(head)" in told
    with app.app_context():
        db.session.execute(delete(OutgoingEmail))
        db.session.commit()
        db.engine.dispose()
        run(fence_with("docs/deploy.md", 'pg_restore --dbname="$DATABASE_URL"'), environ, tmp_path)
        assert db.session.query(OutgoingEmail).count() == 1
    asked = [line for document in PLACES for line in lines_of(document) if line.startswith("psql ")]
    assert len(asked) >= 3
    run("\n".join(asked), environ, tmp_path)
