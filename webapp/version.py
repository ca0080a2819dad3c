"""The version of this release and build."""

from __future__ import annotations

import subprocess  # nosec B404
from functools import cache

from flask import current_app

from webapp.paths import ROOT

# Set only here; CHANGELOG.md has a section for it.
RELEASE = "1.0.0"

LONGEST = 50


def version() -> str:
    """Return the release, followed by "+" and the build if that is known."""
    return f"{RELEASE}+{build()}"[:LONGEST] if build() else RELEASE


def build() -> str:
    """Return APP_VERSION, or what git calls the checkout, or ""."""
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
