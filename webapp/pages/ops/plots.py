"""Plots as shapes that a template draws, without a script; a table beside them has the same numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from webapp.monitoring.timeseries import Part

HEIGHT = 160.0

OUTCOMES = ("accepted", "refused", "troubled")
LATENCIES = ("slowest", "median")
# The labels on the axis of durations, in seconds.
DURATIONS = (0, 10, 60, 600, 3600, 21600, 86400)


@dataclass(frozen=True)
class Bar:
    """A rectangle as wide as its column; the stylesheet colors it by `kind`."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True)
class Tick:
    """A line across the plot, and its value."""

    y: float
    value: float


@dataclass(frozen=True)
class Plot:
    """A column of bars for each slot of time, HEIGHT high, and the axis."""

    columns: Sequence[Sequence[Bar]]
    ticks: Sequence[Tick]


def throughput(parts: Sequence[Part]) -> Plot:
    """Draw the number of attempts, stacked by outcome."""
    top = nice(max(sum(getattr(part, kind) for kind in OUTCOMES) for part in parts))
    columns = []
    for part in parts:
        below = 0.0
        bars = []
        for kind in OUTCOMES:
            height = getattr(part, kind) / top * HEIGHT
            below += height
            if height:
                bars.append(_bar(kind, below, height))
        columns.append(bars)
    values = (0.0, top / 2, top) if top % 2 == 0 else (0.0, top)
    return Plot(columns, [_tick(value / top, value) for value in values])


def latency(parts: Sequence[Part]) -> Plot:
    """Draw how long emails took, the slowest behind the median, on a log scale of one second plus the time."""
    longest = [value for part in parts if (value := part.slowest) is not None and value != math.inf]
    top = next((duration for duration in DURATIONS[1:] if duration >= max([0.0, *longest])), DURATIONS[-1])

    def share(value: float) -> float:
        return min(1.0, math.log10(1 + value) / math.log10(1 + top))

    columns = [
        [
            _bar(kind, share(value) * HEIGHT, share(value) * HEIGHT)
            for kind in LATENCIES
            if (value := getattr(part, kind)) is not None
        ]
        for part in parts
    ]
    return Plot(columns, [_tick(share(value), value) for value in DURATIONS if value <= top])


def nice(value: float) -> float:
    """Return the next round number: 1, 2 or 5 with zeros."""
    if value <= 1:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def _bar(kind: str, top: float, height: float) -> Bar:
    return Bar(kind, round(HEIGHT - top, 1), round(height, 1))


def _tick(share: float, value: float) -> Tick:
    return Tick(round(HEIGHT * (1 - share), 1), value)
