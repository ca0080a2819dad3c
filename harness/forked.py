"""Starting our programs as copies of a process that has imported the app, since imports are most of a start's cost.

A copy does no imports of its own. Programs started by subprocess, by `make run` or with a PYTHONPATH import as usual,
except for those that shall only freeze.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.metadata
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from flask import Flask
from sqlalchemy.orm import configure_mappers

from harness import processes, shared_work
from webapp.delivery import heartbeats
from webapp.pages.shared import link_cookie
from webapp.paths import ROOT

PROGRAMS = {"flask", "gunicorn", "huey_consumer"}
IMPORTED = (
    "webapp.cli",
    "webapp.pages",
    "webapp.delivery.tasks",
    "gunicorn.app.wsgiapp",
    "gunicorn.workers.gthread",
    "huey.bin.huey_consumer",
    "psycopg_binary",
    "sqlalchemy.dialects.postgresql.psycopg",
)


class Forked:
    """The part of subprocess.Popen that tests use."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], output: IO[bytes], errors: IO[bytes]
    ) -> None:
        told, tell = os.pipe()
        self.told = os.fdopen(told)
        try:
            program = {"argv": list(command), "environ": dict(environ)}
            origin().start(program, [output.fileno(), errors.fileno(), tell])
        finally:
            os.close(tell)
        self.pid = int(self.told.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self.told.readline())
            self.told.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def popen(command: Sequence[str], environ: Mapping[str, str], output: IO[bytes], errors: IO[bytes]) -> Any:
    """Start one of our programs as a copy if that makes no difference, and anything else as usual."""
    own = {name for name in environ if name.startswith("PYTHON")}
    harmless = {"PYTHONUNBUFFERED", "PYTHONPATH"} if "CHAOS_FREEZE" in environ else {"PYTHONUNBUFFERED"}
    start = Forked if Path(command[0]).name in PROGRAMS and own <= harmless else processes.popen
    return start(command, environ, output, errors)


class Origin:
    """The tests' handle on the process that the others are copies of. That process ends when the tests do."""

    def __init__(self) -> None:
        self.line, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.templates = tempfile.TemporaryDirectory(prefix="templates-")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.forked", str(its.fileno()), self.templates.name],
            cwd=ROOT,
            env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
        )
        its.close()
        self.lock = threading.Lock()
        atexit.register(self.end)

    def start(self, program: dict[str, Any], files: list[int]) -> None:
        with self.lock:
            socket.send_fds(self.line, [json.dumps(program).encode()], files)

    def end(self) -> None:
        self.line.close()
        self.process.wait()
        self.templates.cleanup()


@cache
def origin() -> Origin:
    return Origin()


def prepare(templates: Path) -> None:
    """Do what every copy would do after its imports, with the same result."""
    shared_work.share_templates(templates)
    shared_work.share_routes()
    configure_mappers()
    importlib.metadata.entry_points = cache(importlib.metadata.entry_points)  # type: ignore[assignment]
    importlib.metadata.entry_points(group="flask.commands")
    pages = [module for name, module in sys.modules.items() if name.startswith("webapp.pages.")]
    app = Flask("routes")
    link_cookie.init_app(app)
    for blueprint in {module.blueprint for module in pages if hasattr(module, "blueprint")}:
        app.register_blueprint(blueprint)


def serve(line: int, templates: Path) -> None:
    """Make copies until the tests close the line; return in each copy."""
    for name in IMPORTED:
        importlib.import_module(name)
    prepare(templates)
    gc.freeze()
    tells: dict[int, int] = {}
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    asked = socket.socket(fileno=line)
    while True:
        ready, _, _ = select.select([line, wake], [], [])
        if wake in ready:
            os.read(wake, 1000)
            report_ended(tells)
        if line not in ready:
            continue
        message, files, _, _ = socket.recv_fds(asked, 1_000_000, 3)
        if not message:
            os._exit(0)
        output, errors, tell = files
        if pid := os.fork():
            os.close(output)
            os.close(errors)
            tells[pid] = tell
        else:
            # Told from here: from then on its group can be killed.
            os.setsid()
            os.write(tell, f"{os.getpid()}\n".encode())
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.detach()
            become(json.loads(message), output, errors)
            return


def report_ended(tells: dict[int, int]) -> None:
    while tells:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell = tells.pop(pid)
        os.write(tell, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os.close(tell)


def become(program: dict[str, Any], output: int, errors: int) -> None:
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(program["environ"])
    time.tzset()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = program["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    if "CHAOS_FREEZE" in os.environ:
        sys.path.append(os.environ["PYTHONPATH"])
        importlib.import_module("freezing")
    heartbeats.NAME = heartbeats.new_name()


def run() -> None:
    """Run the program. A command ends without taking apart what it imported, which takes as long as the command.

    Servers end as usual: how their threads end is what tests are about.
    """
    code = 1

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    if Path(sys.argv[0]).name == "flask":
        # Before its own, so that it comes after them.
        atexit.register(end)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            code = ended.code or 0
        raise


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
    run()
