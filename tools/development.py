"""`make run`: web, worker and mailbox on this machine, from one terminal."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from tools.programs import Console, Programs, Watch

ROOT = Path(__file__).resolve().parent.parent
# Unresolved: the python of a virtual environment is a symlink to another folder.
BIN = Path(sys.executable).parent
# The folders that the programs read when they start.
WATCHED = ("webapp", "own", "instance/templates", "instance/translations")


def main() -> int:
    """Return the exit code."""
    check_python(sys.version_info[:2])
    settings = {**dotenv_values(ROOT / ".env"), **os.environ}
    # Until the processes run, SIGTERM is a KeyboardInterrupt like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        port = choose_port(settings.get("PORT") or "5000")
        mail_port = None if settings.get("MAIL_SERVER") else first_free_port(1025)
        environ = {**os.environ, **overrides(settings, port, mail_port)}
        migrate(environ)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    console = Console()
    if console.has_colors:
        # The programs write to our pipe, so they can't see the terminal.
        environ["FORCE_COLOR"] = "1"
    banner = [*places(settings, port, mail_port), "", *for_another_terminal(environ)]
    threading.Thread(target=announce, args=[console, port, banner], daemon=True).start()
    ended = Programs(commands(port, mail_port), environ, ROOT, console).run(watch(ROOT))
    if ended:
        console.say("", f"The {ended} ended by itself, so everything was ended: see above.")
        return 1
    return 0


# Before the programs start.


def check_python(version: tuple[int, ...]) -> None:
    if version < (3, 11):
        sys.exit(f"Python 3.11 or newer is needed, and this is {'.'.join(map(str, version))}")


def choose_port(wanted: str) -> int:
    if not wanted.isascii() or not wanted.isdigit() or not 1 <= int(wanted) <= 65535:
        sys.exit(f"PORT must be a number from 1 to 65535, not {wanted!r}")
    port = first_free_port(int(wanted))
    if port != int(wanted):
        print(f"port {wanted} is taken, using {port}", flush=True)
    return port


def first_free_port(start: int) -> int:
    for port in range(start, min(start + 100, 65536)):
        if is_free(port):
            return port
    sys.exit(f"none of the 100 ports from {start} on can be used: choose another with PORT=8000 make run")


def is_free(port: int) -> bool:
    # If another program listens on all addresses, we could still bind this one, but browsers would reach the other
    # program: macOS has one on port 5000.
    for host in ("127.0.0.1", "::1"):
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return False
    with socket.socket() as probe:
        # Connections of the last run may linger, which does no harm.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def overrides(settings: Mapping[str, str | None], port: int, mail_port: int | None) -> dict[str, str]:
    """Return the settings that the processes get on top of your own.

    `mail_port`: the mailbox's, or None if email goes to a server of your choice.
    """
    environ = {"APP_ENV": "development", "PYTHONUNBUFFERED": "1", "TZ": "UTC"}
    if not settings.get("PUBLIC_URL"):
        environ["PUBLIC_URL"] = f"http://localhost:{port}"
    if mail_port:
        environ |= {"MAIL_SERVER": "127.0.0.1", "MAIL_PORT": str(mail_port)}
        # The mailbox has neither TLS nor passwords.
        environ |= dict.fromkeys(("MAIL_USE_TLS", "MAIL_USE_SSL", "MAIL_USERNAME", "MAIL_PASSWORD"), "")
    return environ


def migrate(environ: Mapping[str, str]) -> None:
    """Migrate the database, and say so only if there was something to do."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "db", "upgrade"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        # Ctrl-C reaches only us, and we end it.
        start_new_session=True,
    )
    output = f"{done.stdout}{done.stderr}".strip()
    if done.returncode:
        sys.exit(f"{output}\nNothing was started: see above.")
    if steps := output.count("Running upgrade "):
        print(f"database: {steps} migration{'s' if steps > 1 else ''} applied", flush=True)


def commands(port: int, mail_port: int | None) -> dict[str, list[str]]:
    programs = {
        "web": [f"{BIN}/gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}", "--log-level", "warning"],
        "worker": [f"{BIN}/huey_consumer", "huey_worker.huey", "-w", "4", "-g", "TERM"],
    }
    if mail_port:
        programs["mailbox"] = [sys.executable, "-m", "tools.mailbox_server", str(mail_port)]
    return programs


# While the programs run.


def watch(root: Path) -> Watch:
    return Watch(*(root / folder for folder in WATCHED))


def places(settings: Mapping[str, str | None], port: int, mail_port: int | None) -> list[str]:
    """Return the lines that say where to go."""
    url = f"http://localhost:{port}"
    lines = [f"Sign up:     {url}/signup"]
    if mail_port:
        lines.append(f"Mailbox:     {url}/dev/mailbox")
    lines.append(f"Operations:  {url}/ops (make admin: a name and a password for it)")
    public = settings.get("PUBLIC_URL") or url
    parts = urlsplit(public)
    if parts.hostname not in {"localhost", "127.0.0.1", "::1"} or parts.port != port:
        lines.append(f"Links in emails lead to {public}, as PUBLIC_URL says, and not here.")
    return lines


def for_another_terminal(environ: Mapping[str, str]) -> list[str]:
    """Return what to paste so that a command acts on what runs here, whatever the other terminal's settings."""
    return ["Paste this in another terminal to inspect this trial:", f"  {command_line(environ)} mail stats"]


def command_line(environ: Mapping[str, str]) -> str:
    """Return the shell command for `flask`, with the settings that are not in `.env`."""
    ours = ("APP_ENV", "PUBLIC_URL", "MAIL_SERVER", "MAIL_PORT")
    names = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE)
    # Secrets don't belong on a screen, and without them commands can do everything but sign.
    told = [name for name in names if environ.get(name) and not re.search("SECRET|PASSWORD|TOKEN", name)]
    settings = [f"{name}={shlex.quote(environ[name])}" for name in dict.fromkeys([*ours, *told]) if name in environ]
    flask = BIN / "flask"
    program = flask.relative_to(ROOT) if flask.is_relative_to(ROOT) else flask
    return f"cd {shlex.quote(str(ROOT))} && {' '.join(settings)} {shlex.quote(str(program))}"


def announce(console: Console, port: int, banner: list[str]) -> None:
    """Print where to go, once the web server answers."""
    while not answers(port):
        time.sleep(0.1)
    console.say("", *banner, "", "Code changes are picked up automatically. Ctrl-C stops everything.", "")


def answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        # This path isn't logged.
        connection.request("HEAD", "/theme.css")
        connection.getresponse()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


if __name__ == "__main__":
    sys.exit(main())
