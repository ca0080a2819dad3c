"""`make run`: what it checks before it starts, what it starts, and that nothing is left running."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dotenv import dotenv_values

from harness.processes import Process, free_port, wait_until
from harness.visitor import PASSWORD, Visitor
from tests.system.test_journey import Environ
from tools import development
from webapp import config
from webapp.paths import ROOT


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port with another program on it that listens on every address, as many do."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """All of `make run`, with its own database, once it has said where to go."""
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}", "PORT": str(free_port()), "VERIFY_EMAIL_DELAY": "0"}
    command = (sys.executable, "-m", "tools.development")
    with (tmp_path_factory.getbasetemp().parent / "development.lock").open("w") as lock:
        # Two that start at the same moment, in parallel tests, would find the same mailbox port free.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Process(*command, environ={**os.environ, **settings}) as process:
            try:
                wait_until(lambda: "Ctrl-C" in process.log or process.popen.poll() is not None, "no start", 40)
                yield process
            finally:
                # Not with SIGKILL: then it could not end what it started.
                process.stop()


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return not Path(f"/proc/{pid}/stat").exists() or ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def started(process: Process) -> dict[str, int]:
    """Return the pid of each process that this one says it started."""
    # Only at the start of a line: what follows in a log of many processes is not from us.
    (line,) = re.findall(r"^started (.+)$", process.log, re.MULTILINE)
    return {name: int(pid) for name, pid in re.findall(r"(\w+) \((\d+)\)", line)}


def told(process: Process, what: str) -> str:
    """Return what the banner says about this."""
    return next(line.split()[-1] for line in process.log.splitlines() if line.startswith(f"{what}:"))


def test_an_old_python_is_told_in_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^Python 3.11 or newer is needed, and this is 3.9$"):
        development.check_python((3, 9))


def test_a_free_port_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert development.choose_port(str(port)) == port
    assert capsys.readouterr().out == ""


def test_the_next_port_is_used_when_one_is_taken(taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    port = development.choose_port(str(taken_port))
    assert port > taken_port
    assert capsys.readouterr().out == f"port {taken_port} is taken, using {port}\n"


@pytest.mark.parametrize("wanted", ["http", "0", "65536", "-1", "5000.0", "٥٠٠٠"])  # noqa: RUF001 - digits, but no port
def test_a_port_that_is_none_is_told_in_one_line(wanted: str) -> None:
    with pytest.raises(SystemExit, match=rf"^PORT must be a number from 1 to 65535, not '{wanted}'$"):
        development.choose_port(wanted)


def test_mail_goes_to_the_mailbox_whatever_else_is_set() -> None:
    settings: dict[str, str | None] = {"MAIL_PORT": "587", "MAIL_USE_TLS": "true", "MAIL_USERNAME": "me"}
    environ = development.overrides(settings, port=5000, mail_port=1025)
    assert (environ["MAIL_SERVER"], environ["MAIL_PORT"]) == ("127.0.0.1", "1025")
    assert (environ["MAIL_USE_TLS"], environ["MAIL_USERNAME"]) == ("", "")


def test_a_mail_server_of_ones_own_is_respected() -> None:
    settings: dict[str, str | None] = {"MAIL_SERVER": "smtp.example.com"}
    assert not [name for name in development.overrides(settings, 5000, mail_port=None) if name.startswith("MAIL_")]
    assert "mailbox" not in development.commands(5000, mail_port=None)


def test_links_lead_to_the_chosen_port_unless_a_url_is_set() -> None:
    assert development.overrides({}, 5001, 1025)["PUBLIC_URL"] == "http://localhost:5001"
    assert "PUBLIC_URL" not in development.overrides({"PUBLIC_URL": "https://signup.example"}, 5001, 1025)
    for here in ({}, {"PUBLIC_URL": "http://127.0.0.1:5001"}):
        assert not [line for line in development.places(here, 5001, 1025) if "PUBLIC_URL" in line]
    # One of them is a proxy on this machine.
    for url in ("https://signup.example", "http://127.0.0.1:8080"):
        (line,) = [line for line in development.places({"PUBLIC_URL": url}, 5001, 1025) if "PUBLIC_URL" in line]
        assert line == f"Links in emails lead to {url}, as PUBLIC_URL says, and not here."


def test_ones_own_code_templates_and_words_are_watched_as_ours_are(tmp_path: Path) -> None:
    files = {"webapp/pages/hello.py", "own/pages.py", "instance/templates/base.html", "instance/translations/th.po"}
    watch = development.watch(tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("changed")
    changed: set[str] = set()

    def is_noticed() -> bool:
        changed.update(watch.changed())
        return bool(changed)

    wait_until(is_noticed, "nothing was noticed")
    assert {Path(name).relative_to(tmp_path).as_posix() for name in changed} == files


def test_the_example_of_settings_changes_nothing() -> None:
    example = dotenv_values(ROOT / ".env.example")
    ours = development.overrides({}, 5001, 1025)
    assert development.overrides(example, 5001, 1025) == ours
    assert not example.get("PORT")
    assert not example.get("MAIL_SERVER")
    copied = {name: value for name, value in example.items() if value is not None}
    assert config.load({**copied, **ours}) == config.load(ours)


def test_the_line_to_paste_has_what_was_set_for_the_run_and_no_secret() -> None:
    environ = {
        "PATH": "/usr/bin",
        "SECRET_KEY": "4711-4712-4713-4714",
        "MAIL_PASSWORD": "4715",
        "APP_NAME": "Ann's & Co",
        **development.overrides({}, 5001, 1025),
    }
    line = development.command_line(environ)
    assert "APP_ENV=development PUBLIC_URL=http://localhost:5001 MAIL_SERVER=127.0.0.1 MAIL_PORT=1025" in line
    assert """APP_NAME='Ann'"'"'s & Co'""" in line
    assert "PATH=" not in line
    assert "471" not in line


def test_one_walks_from_the_banner_to_an_account_and_to_operations(run: Process, system_environ: Environ) -> None:
    mick = Visitor(told(run, "Sign up").removesuffix("/signup"))
    # The mailbox is shared by everything that ever ran here.
    address = f"{uuid.uuid4().hex}@example.com"
    mick.sign_up(email=address)
    box = told(run, "Mailbox")

    def found() -> list[str]:
        return re.findall(r'href="(/dev/mailbox/\d+-\d+)', mick.open(f"{box}?q={address}").text)

    wait_until(found, "no email in the mailbox")
    mick.open(f"{found()[0]}/html")
    mick.open(re.findall(r'href="(http://localhost:\d+/verify/[^"]+)"', mick.page.text)[0])
    mick.submit("/verify")
    assert mick.path == "/account"
    # The pasted line acts on this very trial, wherever it is pasted.
    (line,) = [line for line in run.log.splitlines() if "flask mail stats" in line]
    pasted = subprocess.run(
        ["sh", "-c", line.replace("stats", "list --json")],
        cwd="/",
        env=system_environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert address in pasted.stdout
    settings = {"DATABASE_URL": run.environ["DATABASE_URL"]}
    with Process(sys.executable, "-m", "tools.admin", environ={**system_environ, **settings}) as made:
        assert made.popen.wait(60) == 0
        given = dict(re.findall(r"^(name|password): +(\S+)$", made.log, re.MULTILINE))
    admin = Visitor(str(mick.http.base_url))
    admin.open("/login")
    admin.submit("/login", identifier=given["name"], password=given["password"])
    assert admin.open("/ops").status_code == 200
    # Each request is logged, except for those that an open page keeps repeating.
    admin.open("/signup/sent/progress", follow=False)
    assert re.search(r"^\d\d:\d\d:\d\d web     \| 303 POST /signup \d+ ms$", run.log, re.MULTILINE)
    assert "| 303 GET /verify/<token> " in run.log
    assert "/signup/sent/progress" not in run.log
    assert run.log.startswith("database: ")
    assert len(re.findall("migrations? applied", run.log)) == 1
    assert "\033" not in run.log
    assert PASSWORD not in run.log


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_command_runs_it_all_and_one_signal_ends_it_all(run: Process, ending: signal.Signals) -> None:
    pids = started(run)
    assert set(pids) == {"web", "worker", "mailbox"}
    run.popen.send_signal(ending)
    assert run.popen.wait(30) == 0
    assert not [name for name, pid in pids.items() if is_alive(pid)]
    assert "Traceback" not in run.log


def test_when_one_ends_the_rest_end_and_it_is_named(run: Process) -> None:
    pids = started(run)
    os.kill(pids["worker"], signal.SIGKILL)
    assert run.popen.wait(30) == 1
    assert not [name for name, pid in pids.items() if is_alive(pid)]
    assert "The worker ended by itself" in run.log
    assert "Traceback" not in run.log


def test_settings_that_make_no_sense_stop_the_start(tmp_path: Path) -> None:
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}", "VERIFY_EMAIL_DELAY": "soon"}
    with Process(sys.executable, "-m", "tools.development", environ={**os.environ, **settings}) as process:
        assert process.popen.wait(40) == 1
        assert "VERIFY_EMAIL_DELAY: must be a whole number" in process.log
        assert "Nothing was started" in process.log
