"""Which release this is, told wherever somebody asks."""

from __future__ import annotations

import subprocess  # nosec B404
from functools import cache

from flask import current_app

from webapp.paths import ROOT

# The one place; CHANGELOG.md has a section for it.
RELEASE = "1.0.0"

LONGEST = 50


def version() -> str:
    """Return the release, and after a "+" which build of it, where that is known."""
    return f"{RELEASE}+{build()}"[:LONGEST] if build() else RELEASE


def build() -> str:
    """Return which build this is: APP_VERSION, or what git calls the checkout; nothing where neither says it."""
    given: str | None = current_app.config["APP_VERSION"]
    return given or _checkout()


@cache
def _checkout() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        told = subprocess.run(git, capture_output=True, text=True, check=True, timeout=5)  # noqa: S603 - ours  # nosec B603
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
