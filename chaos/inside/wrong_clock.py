"""A wall clock that is wrong."""

from __future__ import annotations

import datetime as dt
import os
import time
from typing import Any

OFFSET = float(os.environ.get("CHAOS_CLOCK_OFFSET", "0"))

right_time = time.time
Right = dt.datetime


class Alike(type):
    """Keeps datetimes that C code creates instances of the replaced class."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Right)


class Wrong(Right, metaclass=Alike):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return Right.now(tz) + dt.timedelta(seconds=OFFSET)

    @classmethod
    def utcnow(cls) -> Any:
        return Right.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(seconds=OFFSET)


if OFFSET:
    time.time = lambda: right_time() + OFFSET
    dt.datetime = Wrong  # type: ignore[misc]
