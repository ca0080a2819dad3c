"""Measuring operations: CPU of whole process trees, and time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from harness.usage import tree

median = statistics.median


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share (0 to 1) of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def cpu_seconds(*pids: int) -> float:
    """Return user and system seconds of these processes and their children, including those that have ended."""
    seconds = 0.0
    for pid in pids:
        for process in tree(pid):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


@dataclass
class Spent:
    """Seconds of CPU by these processes, and by the clock."""

    cpu: float = 0.0
    wall: float = 0.0


@contextmanager
def spending(*pids: int) -> Iterator[Spent]:
    """Measure what a block costs; the result is complete when the block ends."""
    spent = Spent()
    cpu, begun = cpu_seconds(*pids), time.perf_counter()
    yield spent
    spent.wall = time.perf_counter() - begun
    spent.cpu = cpu_seconds(*pids) - cpu


@dataclass
class Timer:
    """Collects how long an operation takes, in milliseconds."""

    values: list[float] = field(default_factory=list)

    def run(self, operation: Callable[[], object]) -> None:
        begun = time.perf_counter()
        operation()
        self.values.append(1000 * (time.perf_counter() - begun))

    @property
    def median(self) -> float:
        return median(self.values)


def wait_until(condition: Callable[[], bool], complaint: str, seconds: float = 120, pause: float = 0.02) -> None:
    """Return once `condition` holds. Raises TimeoutError with `complaint`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} (within {seconds:.0f} s)")
        time.sleep(pause)
