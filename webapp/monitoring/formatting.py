"""Values in words, the same in commands and pages."""

from __future__ import annotations

from datetime import UTC, datetime


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


def emails_are(count: int) -> str:
    return "1 email is" if count == 1 else f"{count} emails are"
