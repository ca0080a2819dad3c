"""Your pages, for the web alone."""

from __future__ import annotations

from flask import Flask


def init_app(app: Flask) -> None:
    """Register your blueprints."""
