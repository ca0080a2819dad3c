"""The manifests in examples/kubernetes are valid, as strict as docker-compose.yml, and refer only to what exists."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from flask import Flask

from tests.conftest import settings
from tests.deployment.known_programs import check
from webapp import create_app
from webapp.config import SETTINGS
from webapp.monitoring import prometheus
from webapp.paths import ROOT
from webapp.version import RELEASE

FOLDER = ROOT / "examples" / "kubernetes"
# A release that most clusters have by now; everything used is older.
OLDEST = "1.31.0"


def manifests() -> list[dict[str, Any]]:
    files = sorted(FOLDER.iterdir())
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text("utf-8"))]


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in manifests() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> Iterator[dict[str, Any]]:
    for manifest in manifests():
        if "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_each_manifest_is_valid(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, OLDEST, strict=True)


def test_what_is_no_setting_of_kubernetes_is_found() -> None:
    manifest = named("Deployment", "signup-web")
    manifest["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, OLDEST, strict=True)


def test_no_pod_can_do_more_than_it_must() -> None:
    assert len(list(pods())) == 3
    for pod in pods():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        (container,) = pod["containers"]
        assert container["image"] == f"signup:{RELEASE}"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


def test_its_settings_are_ours_and_no_secret_has_a_value(tmp_path: Path) -> None:
    plain, secret = named("ConfigMap", "signup")["data"], named("Secret", "signup")["stringData"]
    assert set(plain) | set(secret) <= set(SETTINGS)
    assert set(secret.values()) == {""}
    # With these it starts.
    create_app(
        {
            **settings(mail_port=1),
            **plain,
            "MAIL_PASSWORD": "its own",
            "DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}",
        }
    )


def test_what_it_runs_and_asks_is_there(tmp_path: Path) -> None:
    app = create_app({**settings(mail_port=1), "DATABASE_URL": f"sqlite:///{tmp_path / 'app.db'}"})
    for pod in pods():
        (container,) = pod["containers"]
        commands = [container.get("command"), container.get("livenessProbe", {}).get("exec", {}).get("command")]
        for command in filter(None, commands):
            check(command, app)
    (web,) = named("Deployment", "signup-web")["spec"]["template"]["spec"]["containers"]
    asked = {web[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")}
    assert asked == {"/livez", "/readyz"}
    assert web["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_a_worker_is_started_again_only_when_it_is_silent_itself(app: Flask) -> None:
    (worker,) = named("Deployment", "signup-worker")["spec"]["template"]["spec"]["containers"]
    shell, option, script = worker["livenessProbe"]["exec"]["command"]
    assert (shell, option) == ("sh", "-c")
    begin, _, verdict = script.partition("; ")
    result = app.test_cli_runner().invoke(args=shlex.split(begin)[1:])
    # No worker on this machine is alive: only this code restarts it. Without a database it would be 3.
    assert result.exit_code == 1
    assert verdict == "test $? -ne 1"


def test_workers_are_as_many_as_emails_wait(app: Flask) -> None:
    scaler = named("HorizontalPodAutoscaler", "signup-worker")["spec"]
    assert scaler["scaleTargetRef"]["name"] == named("Deployment", "signup-worker")["metadata"]["name"]
    (metric,) = scaler["metrics"]
    with app.app_context():
        assert f"\n{metric['external']['metric']['name']} " in prometheus.render()
    assert "replicas" not in named("Deployment", "signup-worker")["spec"]
