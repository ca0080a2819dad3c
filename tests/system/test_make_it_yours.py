"""The guide to making the app your own: its steps are followed in a copy of the tree, and work there."""

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

# A file's name and its contents, or commands.
STEP = re.compile(
    r"^(?:`(?P<path>[\w./-]+)`:\n\n)?```(?P<language>\w+)\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL
)


# Not ours, or not part of a copy.
LEFT_OUT = shutil.ignore_patterns(".git", ".env", ".venv*", ".*cache*", ".hypothesis", "__pycache__", "instance", "own")


# Tests of ours that sign up, and read an email.
OF_OURS = (
    "tests/accounts/test_signup.py::test_the_answer_to_a_signup_is_303",
    "tests/accounts/test_signup.py::test_a_username_of_a_verified_user_is_told_to_be_taken",
    "tests/accounts/test_signup.py::test_what_a_signup_is_given_and_would_not_write_is_an_error",
    "tests/emails/test_render.py::test_the_subject_says_what_it_is_about",
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tree without anyone's own files, next to the environment that it runs in."""
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


def run(copy: Path, *command: str) -> str:
    """Run it in the copy, and return its output."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR") if name in os.environ}
    # The name that tests/conftest.py uses, so that both use one PostgreSQL.
    environ = {**kept, "PYTEST_XDIST_TESTRUNUID": os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(os.getpid())}
    done = subprocess.run(
        command, cwd=copy, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


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
    assert "Warning" not in run(copy, "sh", "-euc", commands)
    (migration,) = set((copy / "migrations" / "versions").glob("*.py")) - before
    assert migration.name.endswith("_boat.py")
    # If somebody asks for more fields and words it differently, our tests still pass.
    fields = copy / "own" / "fields.py"
    asked_for = 'info={"required": True, "hint": _("As it is painted on her stern."), '
    fields.write_text(fields.read_text("utf-8").replace("info={", asked_for), "utf-8")
    subject = copy / "instance" / "templates" / "mail" / "verify_email" / "subject.txt"
    subject.parent.mkdir()
    subject.write_text("Mine", "utf-8")
    python = str(copy / ".venv" / "bin" / "python")
    run(copy, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", "tests/own", *OF_OURS)
    ours = ["own", "tests/own", str(migration)]
    # That line is too long now.
    run(copy, "make", "--old-file", ".venv/installed-dev", "format")
    run(copy, python, "-m", "tools.own_words")
    run(copy, python, "-m", "ruff", "check", "--no-cache", *ours)
    run(copy, python, "-m", "ruff", "format", "--no-cache", "--check", *ours)
