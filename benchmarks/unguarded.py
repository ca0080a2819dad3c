"""The web app without its password check, to see what the check costs: `gunicorn benchmarks.unguarded:app`."""

from __future__ import annotations

from webapp.accounts import passwords
from wsgi import app

__all__ = ["app"]


def take_any(password: str, words: list[str]) -> list[str]:  # noqa: ARG001 - as its own
    return []


passwords.weakness = take_any
