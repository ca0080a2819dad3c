"""Processes that tests start, and end by pid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from webapp.paths import ROOT

BIN = Path(sys.executable).parent


def popen(command: Sequence[str], environ: Mapping[str, str], output: IO[bytes], errors: IO[bytes]) -> Any:
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=errors, start_new_session=True)


class Process:
    """One of our programs, with its output; `errors`: where that of stderr goes instead."""

    # Tests replace this with a faster way: see harness/forked.py.
    start = staticmethod(popen)

    def __init__(self, *command: str, environ: Mapping[str, str], errors: IO[bytes] | None = None) -> None:
        self.command = command
        self.environ = dict(environ)
        self.errors = errors

    def __enter__(self) -> Self:
        self.output: IO[bytes] = tempfile.TemporaryFile()
        self.popen = self.start(self.command, self.environ, self.output, self.errors or self.output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.popen.poll() is None:
            # The whole process group, for gunicorn's workers too.
            os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
        if error is not None:
            sys.stderr.write(f"--- {' '.join(self.command)}\n{self.log}\n")
        self.output.close()

    def kill(self) -> None:
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self, seconds: float = 15) -> int:
        """Ask it to end, as an operator would; return its exit code."""
        self.popen.terminate()
        code: int = self.popen.wait(seconds)
        return code

    @property
    def log(self) -> str:
        # Not with seek(): the process shares our position in the file, and would write over what it said before.
        output = self.output.fileno()
        return os.pread(output, os.fstat(output).st_size, 0).decode(errors="replace")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the JSON log lines of this event."""
        # The last line may not be whole yet.
        whole = [line for line in self.log.splitlines(keepends=True) if line.endswith("\n")]
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def wait_for_event(self, event: str, seconds: float = 30) -> dict[str, Any]:
        wait_until(lambda: self.events(event), f"no {event!r} in the log of {self.command[0]}", seconds)
        return self.events(event)[-1]


class Freezer:
    """Stops a process in the middle of a transaction, as if its machine were paused: it keeps its locks, silently."""

    def __init__(self, folder: Path) -> None:
        self.wish = folder / f"freeze-{uuid.uuid4().hex}"
        self.environ = {"PYTHONPATH": str(ROOT / "chaos" / "inside"), "CHAOS_FREEZE": str(self.wish)}

    def freeze_at(self, like: str, number: int = 1) -> None:
        """Freeze after the nth statement inside a transaction that matches this regular expression."""
        draft = self.wish.with_suffix(".wish")
        draft.write_text(f"{number} {like}")
        draft.rename(self.wish)

    @property
    def frozen_at(self) -> str | None:
        """The statement after which it froze, if it did."""
        frozen = self.wish.with_suffix(".frozen")
        return frozen.read_text() if frozen.exists() else None

    def forget(self) -> None:
        self.wish.unlink(missing_ok=True)
        self.wish.with_suffix(".frozen").unlink(missing_ok=True)


def gunicorn(environ: Mapping[str, str], port: int, *options: str) -> Process:
    return Process(str(BIN / "gunicorn"), "wsgi:app", "--bind", f"127.0.0.1:{port}", *options, environ=environ)


def flask(environ: Mapping[str, str], *arguments: str, errors: IO[bytes] | None = None) -> Process:
    return Process(str(BIN / "flask"), "--app", "wsgi", *arguments, environ=environ, errors=errors)


def run_flask(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with tempfile.TemporaryFile() as errors, flask(environ, *arguments, errors=errors) as command:
        code = command.popen.wait(100)
        errors.seek(0)
        return subprocess.CompletedProcess(command.command, code, command.log, errors.read().decode())


def consumer(environ: Mapping[str, str], workers: int = 4) -> Process:
    return Process(str(BIN / "huey_consumer"), "huey_worker.huey", "-w", str(workers), "-g", "TERM", environ=environ)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, seconds: float = 20) -> None:
    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, f"nothing listens on port {port}", seconds)


def wait_until(condition: Callable[[], Any], complaint: str, seconds: float = 20) -> None:
    """Return once `condition` holds; fail with `complaint` if it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        if condition():
            return
        assert time.monotonic() < deadline, f"{complaint} (within {seconds} s)"
        # A look that takes long comes less often, since what it waits for needs the processor too.
        time.sleep(min(max(0.05, 2 * (time.monotonic() - begun)), 0.5))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer than that on an idle machine; on a loaded one it gets proportionally more time.

    For blocks that wait. Computing in this very process would count as load: use time.thread_time() for that.
    """
    with Load() as load:
        begun = time.monotonic()
        yield
        took = time.monotonic() - begun
    allowed = seconds * load.slowness
    assert took < allowed, f"took {took:.2f} s of {allowed:.2f} s ({seconds} s by itself)"


class Load:
    """Measures, while it is open, how loaded the machine is: `slowness` is 2 if work takes twice its CPU time."""

    slowness = 1.0

    def __enter__(self) -> Self:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        wall = cpu = 0.0
        while True:
            started, before = time.perf_counter(), time.thread_time()
            while time.thread_time() - before < 0.005:
                pass
            wall += time.perf_counter() - started
            cpu += time.thread_time() - before
            self.slowness = max(1.0, wall / cpu)
            if self.over.wait(0.05):
                return
