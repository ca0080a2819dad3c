"""Your signal receivers and tasks, for web and worker."""

from __future__ import annotations

from flask import Flask


def init_app(app: Flask) -> None:
    """Add to the app what every process needs."""
