"""The guide for whoever makes the app one's own: its steps are done in a copy of the tree, and work there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from webapp.paths import ROOT

GUIDE = (ROOT / "docs" / "make-it-yours.md").read_text("utf-8")

# A file's name and what is in it, or commands.
STEP = re.compile(
    r"^(?:`(?P<path>[\w./-]+)`:\n\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL
)


# Not ours, or no part of what is copied.
LEFT_OUT = shutil.ignore_patterns(".git", ".env", ".venv*", ".*cache*", ".hypothesis", "__pycache__", "instance", "own")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tree without what is somebody's own, beside the environment that it runs in."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    for package in ("own", "tests/own"):
        (copy / package).mkdir()
        shutil.copy(ROOT / package / "__init__.py", copy / package)
    for migration in (copy / "migrations" / "versions").glob("*.py"):
        if not re.match(r"\d{4}_", migration.name):
            migration.unlink()
    (copy / ".venv").symlink_to(sys.prefix)
    return copy


def run(copy: Path, *command: str) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR") if name in os.environ}
    # As tests/conftest.py names it, so that both use one PostgreSQL.
    environ = {**kept, "PYTEST_XDIST_TESTRUNUID": os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())}
    done = subprocess.run(
        command, cwd=copy, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("postgres")
def test_each_step_of_the_guide_works_in_a_copy_of_the_tree(copy: Path) -> None:
    before = set((copy / "migrations" / "versions").glob("*.py"))
    commands = ""
    for step in STEP.finditer(GUIDE):
        if step["path"]:
            path = copy / step["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["content"], "utf-8")
        elif "db migrate" in step["content"]:
            commands = step["content"]
    run(copy, "sh", "-euc", commands)
    (migration,) = set((copy / "migrations" / "versions").glob("*.py")) - before
    assert migration.name.endswith("_boat.py")
    python = str(copy / ".venv" / "bin" / "python")
    run(copy, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", "tests/own")
    ours = ["own", "tests/own", str(migration)]
    # What `make format` does.
    run(copy, python, "-m", "ruff", "format", "--no-cache", str(migration))
    run(copy, python, "-m", "ruff", "check", "--no-cache", *ours)
    run(copy, python, "-m", "ruff", "format", "--no-cache", "--check", *ours)
