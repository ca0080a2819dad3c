"""Memory, open files and threads of whole process trees."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def resident(pid: int) -> int:
    """Return the resident bytes of this process and its children; shared memory counts for each."""
    return _held(pid, lambda one: int(Path(f"/proc/{one.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE)


def open_files(pid: int) -> int:
    return _held(pid, psutil.Process.num_fds)


def threads(pid: int) -> int:
    return _held(pid, psutil.Process.num_threads)


def _held(pid: int, of_one: Callable[[psutil.Process], int]) -> int:
    held = 0
    for process in tree(pid):
        # It may just have ended.
        with suppress(OSError, psutil.NoSuchProcess):
            held += of_one(process)
    return held
