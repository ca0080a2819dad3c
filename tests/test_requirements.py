"""Production installs what it imports, and nothing that only a trial or a test needs."""

from __future__ import annotations

import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from harness.processes import Process
from tests.conftest import PACKAGES
from webapp.paths import ROOT

# Serves a page and loads the worker, in a process that can't find the modules named on its command line.
SERVE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not installed in production")

blocked = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Blocked())
import gunicorn.app.wsgiapp
import runpy
runpy.run_path("gunicorn.conf.py")
import wsgi, huey_worker
page = wsgi.app.test_client().get("/signup", headers={"Host": "signup.example"})
commands = wsgi.app.test_cli_runner().invoke(args=["mail", "--help"])
print(wsgi.app.config["APP_ENV"], page.status_code, commands.exit_code, huey_worker.huey.name)
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> set[str]:
    """Return the distributions that a requirements file installs."""
    return set(re.findall(r"^([a-z0-9][\w.-]*)(?:\[[\w,-]+\])?==", (ROOT / file).read_text("utf-8"), re.MULTILINE))


def test_production_needs_nothing_but_its_own_requirements(tmp_path: Path, system_environ: dict[str, str]) -> None:
    in_production = {canonical(name) for name in pinned("requirements.txt")}
    blocked = [
        module
        for module, owners in packages_distributions().items()
        if not {canonical(owner) for owner in owners} & in_production
    ]
    assert {"aiosmtpd", "httpx", "pytest"} <= set(blocked)
    environ = {
        **system_environ,
        "SECRET_KEY": "for-tests-only-0123456789",
        "PUBLIC_URL": "http://signup.example",
        "MAIL_SERVER": "127.0.0.1",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}",
    }
    with Process(sys.executable, "-c", SERVE, ",".join(blocked), environ=environ) as process:
        assert process.popen.wait(60) == 0, process.log
        assert process.log.splitlines()[-1] == "production 200 0 signup"


def test_a_trial_installs_few_things_besides() -> None:
    assert "aiosmtpd" in pinned("requirements/trial.txt")
    assert len(pinned("requirements/trial.txt")) <= 5
    assert not pinned("requirements/trial.txt") & pinned("requirements.txt")


def test_the_image_installs_the_first_alone() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert [line for line in lines if "requirements" in line and line.startswith("COPY")] == ["COPY requirements.txt /"]


def test_what_is_named_is_pinned_and_lies_in_one_folder() -> None:
    assert [path.name for path in ROOT.glob("*.in")] == []
    assert sorted(path.name for path in ROOT.glob("requirements*")) == ["requirements", "requirements.txt"]
    for source in (ROOT / "requirements").glob("*.in"):
        pins = ROOT / "requirements.txt" if source.stem == "app" else source.with_suffix(".txt")
        named = re.findall(r"^([a-z][\w.-]*)", source.read_text("utf-8"), re.MULTILINE)
        assert {canonical(name) for name in named} <= {canonical(name) for name in pinned(str(pins.relative_to(ROOT)))}


def test_ci_installs_anew_when_any_of_them_changed() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]["check"]["steps"]
    (paths,) = [step["with"]["cache-dependency-path"] for step in steps if "setup-python" in step.get("uses", "")]
    assert all(any(ROOT.glob(path)) for path in paths.split())
    assert {path.suffix for pattern in paths.split() for path in ROOT.glob(pattern)} == {".txt"}


def test_ci_installs_each_program_that_a_test_needs() -> None:
    """On a fresh machine the test would fail."""
    ours = (ROOT / ".ci" / "run").read_text("utf-8")
    needed = {f"command -v {program} >/dev/null || missing+=({package})" for program, package in PACKAGES.items()}
    assert {line for line in needed if line not in ours} == set()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    # Its machine has systemd.
    assert set(PACKAGES.values()) - {"systemd"} <= set(workflow.split())


def test_who_opens_the_folder_sees_few_entries() -> None:
    entries = [path.name for path in ROOT.iterdir() if not path.name.startswith((".", "__"))]
    assert len(entries) <= 30, sorted(entries)
