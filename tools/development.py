"""What `make run` runs: web, worker and mailbox on this machine, from one terminal."""

from __future__ import annotations

import os
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
from types import FrameType

from dotenv import dotenv_values
from honcho.manager import Manager
from honcho.printer import Message, Printer

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def main() -> int:
    """Return the exit code."""
    check_python(sys.version_info[:2])
    settings = {**dotenv_values(ROOT / ".env"), **os.environ}
    # Until the processes run, every way to end us is an ordinary KeyboardInterrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        port = choose_port(settings.get("PORT") or "5000")
        mail_port = None if settings.get("MAIL_SERVER") else first_free_port(1025)
        environ = {**os.environ, **overrides(settings, port, mail_port)}
        migrate(environ)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    processes = Processes(Console(sys.stdout))
    for name, command in commands(port, mail_port).items():
        # exec, so that signals reach the program instead of the shell that starts it.
        processes.add_process(name, f"exec {shlex.join(command)}", env=environ, cwd=str(ROOT))
    threading.Thread(target=announce, args=[port, mail_port], daemon=True).start()
    processes.loop()
    if processes.first_to_end:
        print(f"\nThe {processes.first_to_end} ended by itself, so everything was ended: see above.", flush=True)
        return 1
    return 0


# Before anything starts.


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
    # Beside a program that listens on every address we could still bind this one, and browsers would
    # reach the other program: macOS has such a one on port 5000.
    for host in ("127.0.0.1", "::1"):
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return False
    with socket.socket() as probe:
        # The last run's connections may linger, and hinder nobody.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def overrides(settings: Mapping[str, str | None], port: int, mail_port: int | None) -> dict[str, str]:
    """Return what the processes get besides a person's own settings.

    `mail_port` is the mailbox's, or None when mail goes to a server of the person's choice.
    """
    environ = {"APP_ENV": "development", "PYTHONUNBUFFERED": "1", "TZ": "UTC"}
    if not settings.get("PUBLIC_URL"):
        environ["PUBLIC_URL"] = f"http://localhost:{port}"
    if mail_port:
        environ |= {"MAIL_SERVER": "127.0.0.1", "MAIL_PORT": str(mail_port)}
        # The mailbox knows no TLS and no passwords.
        environ |= dict.fromkeys(("MAIL_USE_TLS", "MAIL_USE_SSL", "MAIL_USERNAME", "MAIL_PASSWORD"), "")
    return environ


def migrate(environ: Mapping[str, str]) -> None:
    """Bring the database up to date, and say so only if there was something to do."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "db", "upgrade"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        # Ctrl-C reaches us alone, and we end it.
        start_new_session=True,
    )
    output = f"{done.stdout}{done.stderr}".strip()
    if done.returncode:
        sys.exit(f"{output}\nNothing was started: see above.")
    for line in output.splitlines():
        if "Running upgrade" in line:
            print(line, flush=True)


def commands(port: int, mail_port: int | None) -> dict[str, list[str]]:
    programs = {
        "web": [f"{BIN}/gunicorn", "wsgi:app", "--bind", f"127.0.0.1:{port}"],
        "worker": [f"{BIN}/huey_consumer", "huey_worker.huey", "-w", "4", "-g", "TERM"],
    }
    if mail_port:
        programs["mailbox"] = [sys.executable, "-m", "tools.mailbox_server", str(mail_port)]
    return programs


# While everything runs.


def announce(port: int, mail_port: int | None) -> None:
    """Tell where to go, once there is somebody at home."""
    while not answers(port):
        time.sleep(0.1)
    lines = [f"Sign up: http://localhost:{port}/signup"]
    if mail_port:
        lines.append(f"Mailbox: http://localhost:{port}/dev/mailbox")
    lines.append("Ctrl-C ends it all.")
    with suppress(OSError):
        print("", *lines, "", sep="\n", flush=True)


def answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("HEAD", "/signup")
        connection.getresponse()
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


class Processes(Manager):
    """Honcho's processes: when one ends, or when we are told to, all of them end."""

    def __init__(self, printer: Printer) -> None:
        super().__init__(printer)
        self.told_to_end = False
        self.first_to_end: str | None = None

    def _start(self) -> None:
        # Honcho's own handlers end processes that may not have begun yet, and know nothing of a closed terminal.
        signal.signal(signal.SIGINT, self._end)
        signal.signal(signal.SIGTERM, self._end)
        # A closed terminal tells Honcho's helpers too, and they must live to tell us what became of their process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        super()._start()
        signal.signal(signal.SIGHUP, self._end)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self.told_to_end = True

    def _any_stopped(self) -> bool:
        # Honcho's loop asks this to see whether it is time to end the rest.
        return self.told_to_end or super()._any_stopped()

    def terminate(self) -> None:
        self.first_to_end = next((name for name, state in self._processes.items() if "returncode" in state), None)
        super().terminate()


class Console(Printer):
    """The terminal, for as long as it is there."""

    def write(self, message: Message) -> None:
        try:
            super().write(message)
        except OSError:
            # A closed terminal must not keep us from ending the processes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.output.fileno())


if __name__ == "__main__":
    sys.exit(main())
