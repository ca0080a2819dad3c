"""Plots as shapes that a template draws: no script, and the same numbers stand in a table beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from webapp.monitoring.timeseries import Part

WIDTH, HEIGHT = 720.0, 160.0
# What a part leaves free to its neighbour.
GAP = 2.0

OUTCOMES = ("accepted", "refused", "troubled")
LATENCIES = ("slowest", "median")


@dataclass(frozen=True)
class Bar:
    """A rectangle, of a kind that the stylesheet colours."""

    kind: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Plot:
    """Bars in a frame of WIDTH to HEIGHT, whose top edge means `top`."""

    bars: Sequence[Bar]
    top: float


def throughput(parts: Sequence[Part]) -> Plot:
    """Draw how many tries ended how, one upon the other."""
    top = nice(max(part.accepted + part.refused + part.troubled for part in parts))
    bars = []
    for place, part in enumerate(parts):
        below = 0.0
        for kind in OUTCOMES:
            height = getattr(part, kind) / top * HEIGHT
            below += height
            if height:
                bars.append(_bar(kind, place, len(parts), below, height))
    return Plot(bars, top)


def latency(parts: Sequence[Part]) -> Plot:
    """Draw how long mails took, the slowest behind the median; by logarithm, from one second on."""
    longest = [value for part in parts if (value := part.slowest) is not None]
    top = nice(max([10.0, *(value for value in longest if value != math.inf)]))
    bars = []
    for place, part in enumerate(parts):
        for kind in LATENCIES:
            value = getattr(part, kind)
            if value is not None:
                height = min(1.0, math.log10(1 + value) / math.log10(1 + top)) * HEIGHT
                bars.append(_bar(kind, place, len(parts), height, height))
    return Plot(bars, top)


def nice(value: float) -> float:
    """Return the next number that reads well: 1, 2 or 5 with zeros."""
    if value <= 1:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def _bar(kind: str, place: int, places: int, top: float, height: float) -> Bar:
    width = WIDTH / places
    return Bar(kind, round(place * width, 1), round(HEIGHT - top, 1), round(width - GAP, 1), round(height, 1))
