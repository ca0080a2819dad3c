""".github/workflows/release.yml, as far as it runs here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from webapp.paths import ROOT
from webapp.version import RELEASE

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps() -> list[dict[str, Any]]:
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))
    found: list[dict[str, Any]] = release["jobs"]["release"]["steps"]
    return found


def script(name: str) -> str:
    (found,) = [str(step["run"]) for step in steps() if step.get("name", "").startswith(name)]
    return found


def run(lines: str, environ: dict[str, str], folder: Path) -> int:
    """Run the steps like GitHub does; return the exit code."""
    environ = {**environ, "GITHUB_ENV": str(folder / "env")}
    # Files that they write must stay out of our folder.
    for name in ("webapp", "CHANGELOG.md", "requirements.txt"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return subprocess.run(["bash", "-eo", "pipefail", "-c", lines], cwd=folder, env=environ, check=False).returncode


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_of_others_are_pinned(path: Path) -> None:
    used = re.findall(r"uses: (?!\./)(\S+)", path.read_text("utf-8"))
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []
    run_by_us = path.read_text("utf-8")
    assert re.findall(r"docker run [^\n]*?/\w+(?!@sha256:)[:\s]", run_by_us) == []


def test_each_step_is_understood_by_a_shell() -> None:
    for step in steps():
        if "run" in step:
            subprocess.run(["bash", "-n", "-c", step["run"]], check=True)


def test_a_tag_is_the_version_in_the_code_and_has_its_notes(tmp_path: Path, system_environ: dict[str, str]) -> None:
    lines = script("The tag is the version")
    environ = {**system_environ, "IMAGE": "ghcr.io/Acme/Signup", "TAG": f"v{RELEASE}"}
    assert run(lines, environ, tmp_path) == 0
    assert (tmp_path / "env").read_text().splitlines() == [f"VERSION={RELEASE}", "IMAGE=ghcr.io/acme/signup"]
    notes = (tmp_path / "notes.md").read_text()
    assert "### Upgrading" in notes
    assert "\n## " not in notes
    assert run(lines, {**environ, "TAG": "v0.0.1"}, tmp_path) != 0


def test_the_archive_is_the_code_and_has_its_sums(tmp_path: Path, system_environ: dict[str, str]) -> None:
    # The list of components comes from a program that is downloaded.
    lines = re.sub(r"pipx run .*?\\\n.*", "echo {} > signup-$VERSION.cdx.json", script("Archive"))
    lines = lines.replace("git archive", f"git -C {ROOT} archive").replace("--output=", f"--output={tmp_path}/")
    assert run(lines, {**system_environ, "VERSION": RELEASE}, tmp_path) == 0
    listed = subprocess.run(
        ["tar", "-tf", tmp_path / f"signup-{RELEASE}.tar.gz"], capture_output=True, text=True, check=True
    )
    assert {f"signup-{RELEASE}/wsgi.py", f"signup-{RELEASE}/requirements.txt"} <= set(listed.stdout.splitlines())
    sums = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1] for line in sums} == {f"signup-{RELEASE}.tar.gz", f"signup-{RELEASE}.cdx.json"}
