"""Values as commands and reports print them, in English."""

from __future__ import annotations

from datetime import UTC, datetime

from webapp.db import clock


def plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(at: datetime) -> str:
    """Return how long ago it was, or in how long it will be."""
    seconds = (clock.now() - at).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def emails_are(count: int) -> str:
    return "1 email is" if count == 1 else f"{count} emails are"
