"""Programs side by side in one terminal: they restart together when a file changes, and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

# How soon we notice that a program ended or that we should, and how often we look at the files.
TICK_SECONDS = 0.2
LOOK_SECONDS = 1
# Gunicorn gives requests in flight 10 seconds.
END_SECONDS = 15

COLORS = {"web": "36", "worker": "35", "mailbox": "33"}


class Console:
    """The terminal, while it is open: each line with its time and program."""

    def __init__(self) -> None:
        self.has_colors = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()

    def say(self, *lines: str) -> None:
        # A closed terminal must not stop us from ending the programs.
        with self._lock, suppress(OSError):
            print(*lines, sep="\n", flush=True)

    def tell(self, name: str, line: str) -> None:
        prefix = f"{time.strftime('%H:%M:%S')} {name:7} |"
        self.say(f"\033[{COLORS.get(name, '0')}m{prefix}\033[0m {line}" if self.has_colors else f"{prefix} {line}")


class Watch:
    """Watches the files in these folders for changes."""

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self._seen = self._look()
        self._changed: set[str] = set()
        self._next_look = time.monotonic() + LOOK_SECONDS

    def changed(self) -> set[str]:
        """Return which files changed, once nothing more is written. Looks at most every LOOK_SECONDS."""
        if time.monotonic() < self._next_look:
            return set()
        self._next_look = time.monotonic() + LOOK_SECONDS
        now = self._look()
        if now != self._seen:
            self._changed |= {name for name, _ in self._seen.items() ^ now.items()}
            self._seen = now
            return set()
        changed, self._changed = self._changed, set()
        return changed

    def _look(self) -> dict[str, int]:
        found = {}
        for root in self.folders:
            for folder, below, names in os.walk(root):
                below[:] = [name for name in below if name != "__pycache__"]
                for path in (os.path.join(folder, name) for name in names):  # noqa: PTH118 - a fifth of pathlib's time
                    with suppress(FileNotFoundError):
                        found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116
        return found


class Programs:
    def __init__(
        self, commands: Mapping[str, Sequence[str]], environ: Mapping[str, str], folder: Path, console: Console
    ) -> None:
        self.commands = commands
        self.environ = environ
        self.folder = folder
        self.console = console
        self.told_to_end = False
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []

    def run(self, watch: Watch) -> str | None:
        """Run them until one ends or we are told to end; return the name of the one that ended by itself, if any."""
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, self._tell_to_end)
        try:
            self._start()
            is_as_it_was = True
            while not self.told_to_end:
                time.sleep(TICK_SECONDS)
                if changed := watch.changed():
                    is_as_it_was = False
                    names = sorted(os.path.relpath(path, self.folder) for path in changed)
                    self.console.say(f"changed: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
                    self._end()
                    self._start()
                elif ended := self._ended():
                    if is_as_it_was:
                        return ended
                    # Most likely because of a mistake in the latest change.
                    self._end()
                    self.console.say(f"The {ended} ended by itself: all start again when a file changes.")
            return None
        finally:
            self._end()

    def _tell_to_end(self, _signal: int, _frame: FrameType | None) -> None:
        self.told_to_end = True

    def _start(self) -> None:
        for name, command in self.commands.items():
            program = subprocess.Popen(  # noqa: S603 - our own programs
                command,
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Ctrl-C reaches only us, and we end them.
                start_new_session=True,
            )
            self._running[name] = program
            reader = threading.Thread(target=self._pass_on, args=[name, program], daemon=True)
            reader.start()
            self._readers.append(reader)
        self.console.say(f"started {', '.join(f'{name} ({one.pid})' for name, one in self._running.items())}")

    def _pass_on(self, name: str, program: subprocess.Popen[str]) -> None:
        for line in program.stdout or ():
            self.console.tell(name, line.rstrip("\n"))

    def _ended(self) -> str | None:
        return next((name for name, program in self._running.items() if program.poll() is not None), None)

    def _end(self) -> None:
        """End them all, and everything that they started."""
        for program in self._running.values():
            send(program, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        for program in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                program.wait(max(0, deadline - time.monotonic()))
            send(program, signal.SIGKILL)
            program.wait()
        for reader in self._readers:
            # Read its last output; a grandchild that escaped may keep the pipe open.
            reader.join(1)
        self._running.clear()
        self._readers.clear()


def send(program: subprocess.Popen[str], ending: signal.Signals) -> None:
    """Send a signal to a program and to everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, ending)
