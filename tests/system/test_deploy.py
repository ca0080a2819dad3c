"""The systemd units and the Procfile in docs/deploy.md run as they are."""

from __future__ import annotations

import getopt
import os
import shlex
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml  # type: ignore[import-untyped]

from harness.processes import BIN, Process, free_port, wait_for_port
from harness.servers import Postgres
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.conftest import installed, settings
from tests.system.test_journey import Environ
from webapp.paths import ROOT

UNITS = sorted((ROOT / "examples" / "systemd").glob("*.service"))


def unit(path: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text("utf-8"))
    return parser


def delivers(port: int, smtp: Server) -> None:
    """Sign up at this port, and wait for the email."""
    assert httpx.get(f"http://127.0.0.1:{port}/readyz", headers={"Host": "signup.example"}).json()["status"] == "ready"
    visitor = Visitor(f"http://127.0.0.1:{port}")
    visitor.sign_up(email="ann@example.com")
    assert visitor.path == "/signup/sent"
    assert smtp.wait_for("ann@example.com").link.startswith("http://signup.example/verify/")


def test_systemd_understands_each_unit(tmp_path: Path) -> None:
    analyze = installed("systemd-analyze")
    (tmp_path / ".venv").symlink_to(BIN.parent)
    copies = [tmp_path / path.name for path in UNITS]
    for path, copy in zip(UNITS, copies, strict=True):
        copy.write_text(path.read_text("utf-8").replace("/opt/signup", str(tmp_path)))
    done = subprocess.run([analyze, "verify", *copies], capture_output=True, text=True, check=False)
    # It also reports problems of the machine's own units.
    assert "signup-" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_the_units_of_systemd_run_it_all_on_one_small_server(
    tmp_path: Path, system_environ: Environ, smtp: Server
) -> None:
    environ = {**system_environ, **settings(smtp.port), "DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}"}
    environ["VERIFY_EMAIL_DELAY"] = "0"
    port = free_port()
    assert [path.name for path in UNITS] == ["signup-web.service", "signup-worker.service"]
    with ExitStack() as running:
        processes = []
        for path in UNITS:
            service = unit(path)["Service"]
            assert service["EnvironmentFile"] == "/etc/signup.env"
            for line in (service["ExecStartPre"], service["ExecStart"]):
                command = shlex.split(line.replace("/opt/signup/.venv/bin", str(BIN)).replace(":8000", f":{port}"))
                process = running.enter_context(Process(*command, environ=environ))
                if line == service["ExecStartPre"]:
                    assert process.popen.wait(60) == 0, process.log
            processes.append(process)
        wait_for_port(port)
        delivers(port, smtp)
        assert [process.stop(int(service["TimeoutStopSec"])) for process in processes] == [0, 0]


def test_commands_are_typed_as_they_are_written(tmp_path: Path) -> None:
    told = tmp_path / "systemd-run"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SUDO_USER": "ann"}
    typed = [str(ROOT / "examples" / "systemd" / "flask"), "mail", "pause", "moving house"]
    done = subprocess.run(typed, env=environ, capture_output=True, text=True, check=True)
    options, command = getopt.getopt(done.stdout.splitlines(), "p:", ["pty", "pipe", "quiet", "uid=", "setenv="])
    assert command == ["/opt/signup/.venv/bin/flask", "mail", "pause", "moving house"]
    assert ("--setenv", "OPERATOR=ann") in options
    for path in UNITS:
        service = unit(path)["Service"]
        assert ("--uid", service["User"]) in options
        for name in ("WorkingDirectory", "EnvironmentFile"):
            assert ("-p", f"{name}={service[name]}") in options


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """A new database, by the name that platforms give it."""
    url = postgres.create()
    yield url.replace("postgresql://", "postgres://", 1)
    postgres.drop(url)


def test_the_procfile_runs_on_a_platform(database_url: str, system_environ: Environ, smtp: Server) -> None:
    lines = (ROOT / "examples" / "Procfile").read_text("utf-8").splitlines()
    commands = dict(line.split(": ", 1) for line in lines)
    assert list(commands) == ["release", "web", "worker"]
    assert database_url.startswith("postgres://")
    port = free_port()
    environ = {
        **system_environ,
        **settings(smtp.port),
        "PATH": f"{BIN}:{system_environ['PATH']}",
        "DATABASE_URL": database_url,
        "PORT": str(port),
        "VERIFY_EMAIL_DELAY": "0",
    }

    def start(name: str) -> Process:
        return Process("sh", "-c", f"exec {commands[name]}", environ=environ)

    with start("release") as release:
        assert release.popen.wait(60) == 0, release.log
    with start("web"), start("worker"):
        wait_for_port(port)
        delivers(port, smtp)


def test_the_image_listens_where_a_platform_wants_it() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert 'CMD ["gunicorn", "wsgi:app"]' in dockerfile
    assert "ENV PORT=8000" in dockerfile
    # Behind nginx it stays where nginx looks for it, whatever PORT says.
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    assert services["web"]["environment"]["PORT"] == "8000"
    assert "http://web:8000" in (ROOT / "docker" / "nginx.conf").read_text("utf-8")
