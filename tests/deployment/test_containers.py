"""docker-compose.yml, docker-compose.ha.yml, the Dockerfile, and their scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import yaml  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict

from harness.processes import Process, wait_until
from harness.servers import Postgres
from tests.deployment.known_programs import POSTGRES_PROGRAMS
from webapp.config import FORM_BYTES
from webapp.paths import ROOT

FILES = ["docker-compose.yml", "docker-compose.ha.yml"]


def compose(file: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / file).read_text("utf-8"))
    return read


def services() -> dict[str, dict[str, Any]]:
    """Return each service as both files together define it."""
    base, more = (compose(file)["services"] for file in FILES)
    found: dict[str, dict[str, Any]] = {**base}
    for name, service in more.items():
        extended = base[service["extends"]["service"]] if "extends" in service else base.get(name, {})
        found[name] = {**extended, **service}
    return found


@pytest.mark.parametrize(("name", "service"), services().items(), ids=services())
def test_no_container_can_do_more_than_it_must(name: str, service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert 16 <= service["pids_limit"] <= 256
    # Containers that exit are restarted, except for the one that runs once.
    assert service.get("restart") == ("no" if name == "migrate" else "unless-stopped")


def test_bodies_that_wait_at_the_proxy_do_not_fill_its_memory() -> None:
    proxy = services()["proxy"]
    (room,) = proxy["tmpfs"]
    found = re.search(r":size=(\d+)m$", room)
    assert found
    assert int(found[1]) <= int(proxy["deploy"]["resources"]["limits"]["memory"].removesuffix("M")) / 2


@pytest.mark.parametrize("file", ["docker/nginx.conf", "examples/front-door/nginx.conf", "docs/deploy.md"])
def test_a_proxy_keeps_no_body_that_is_much_larger_than_a_form(file: str) -> None:
    sizes = re.findall(r"client_max_body_size (\d+)k;", (ROOT / file).read_text("utf-8"))
    assert sizes
    assert {int(size) for size in sizes} == {4 * FORM_BYTES // 1024}


def test_images_of_others_have_an_exact_version_and_a_digest() -> None:
    theirs = {service["image"] for service in services().values() if "IMAGE" not in service["image"]}
    assert {image.split(":")[0] for image in theirs} == {"postgres", "redis", "axllent/mailpit"}
    assert [
        image for image in theirs if not re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?@sha256:[0-9a-f]{64}", image)
    ] == []


def test_the_image_is_built_on_one_base_by_its_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert len(bases) == 3
    (base,) = set(bases)
    assert re.fullmatch(r"python:3\.\d+-slim@sha256:[0-9a-f]{64}", base)


def test_what_images_are_made_of_is_handed_to_the_engine() -> None:
    patterns = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = [line.removeprefix("!") for line in patterns if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert len(copied) > 5
    for source in " ".join(copied).split():
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) or pattern.startswith(f"{source}/") for pattern in let_in), source


def test_each_secret_that_is_named_is_declared_and_made(tmp_path: Path, system_environ: dict[str, str]) -> None:
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    subprocess.run([tmp_path / "docker" / "secrets.sh"], env=system_environ, check=True)
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    declared = compose("docker-compose.yml")["secrets"]
    assert {name: one["file"] for name, one in declared.items()} == {name: f"secrets/{name}" for name in made}
    documents = [ROOT / ".env.example", ROOT / "docker-compose.yml", *(ROOT / "docs").glob("*.md")]
    named = {name for path in documents for name in re.findall(r"/run/secrets/(\w+)", path.read_text("utf-8"))}
    assert {"mail_password", "metrics_token"} <= named
    assert named <= made
    # The app gets all of its own.
    assert named - {"postgres_password"} <= set(compose("docker-compose.yml")["services"]["web"]["secrets"])
    # Existing secrets are kept.
    token = (tmp_path / "secrets" / "metrics_token").read_text()
    (tmp_path / "secrets" / "mail_password").write_text("mine")
    subprocess.run([tmp_path / "docker" / "secrets.sh"], env=system_environ, check=True)
    assert (tmp_path / "secrets" / "metrics_token").read_text() == token
    assert (tmp_path / "secrets" / "mail_password").read_text() == "mine"


@pytest.mark.parametrize(("plugin_exits", "kept"), [(1, "COMPOSE_COMMAND=docker-compose\n"), (0, "")])
def test_doctor_calls_compose_as_it_is_called_here(
    tmp_path: Path, system_environ: dict[str, str], plugin_exits: int, kept: str
) -> None:
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    programs = tmp_path / "bin"
    programs.mkdir()
    for program, code in (("docker", plugin_exits), ("docker-compose", 0)):
        (programs / program).write_text(f"#!/bin/sh\nexit {code}\n")
        (programs / program).chmod(0o755)
    environ = {**system_environ, "PATH": f"{programs}:{system_environ['PATH']}"}
    for _ in range(2):
        subprocess.run([tmp_path / "docker" / "secrets.sh"], env=environ, check=True)
        assert (tmp_path / ".env").read_text() == kept


def test_one_setting_leads_emails_away_from_the_trial_mailbox() -> None:
    declared = compose("docker-compose.yml")["services"]
    for name in ("web", "worker"):
        assert declared[name]["environment"]["MAIL_SERVER"] == "${MAIL_SERVER:-mailpit}"
        # The port is the usual one of mail servers, unless .env has another.
        assert "MAIL_PORT" not in declared[name]["environment"]
    assert declared["mailpit"]["environment"] == {"MP_SMTP_BIND_ADDR": "0.0.0.0:25"}


@pytest.fixture
def backup(postgres: Postgres, system_environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of docker/backup.sh, and a database with a table."""
    url = postgres.create()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE promised AS SELECT 'ann' AS name")
    login = conninfo_to_dict(url)
    (tmp_path / "password").write_text("unused")
    (tmp_path / "backups").mkdir()
    return {
        **system_environ,
        "PATH": os.pathsep.join([str(POSTGRES_PROGRAMS), system_environ["PATH"]]),
        "PGHOST": str(login["host"]),
        "PGUSER": str(login["user"]),
        "PGDATABASE": str(login["dbname"]),
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
        "BACKUPS": str(tmp_path / "backups"),
        "BACKUP_KEEP": "2",
        "URL": url,
    }


def run(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / "docker" / "backup.sh"), *arguments]
    return subprocess.run(script, env=environ, capture_output=True, text=True, errors="replace", check=False)


def test_backups_are_made_by_a_schedule_and_the_oldest_go(backup: dict[str, str]) -> None:
    folder = Path(backup["BACKUPS"])
    assert run(backup, "check").returncode == 1
    for name in ("2001-01-01T000000Z.dump", "2002-01-01T000000Z.dump"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    assert run(backup, "check").returncode == 1
    with Process(str(ROOT / "docker" / "backup.sh"), environ=backup) as schedule:
        wait_until(lambda: "dumped" in schedule.log, "nothing was dumped")
        wait_until(lambda: len(list(folder.iterdir())) == 2, "the oldest one is still there")
    assert run(backup, "check").returncode == 0
    older, newer = sorted(folder.iterdir())
    assert older.name == "2002-01-01T000000Z.dump"
    assert newer.stat().st_mode & 0o077 == 0
    # Not again at each start.
    with Process(str(ROOT / "docker" / "backup.sh"), environ=backup) as schedule:
        asleep = psutil.Process(schedule.popen.pid)
        wait_until(lambda: [one for one in asleep.children() if one.name() == "sleep"], "it did not look")
        assert sorted(folder.iterdir()) == [older, newer]


def test_a_backup_brings_back_what_was_there(backup: dict[str, str]) -> None:
    assert run(backup, "once").returncode == 0
    with psycopg.connect(backup["URL"]) as connection:
        connection.execute("UPDATE promised SET name = 'bob'")
    assert run(backup, "restore", "latest").returncode == 0
    with psycopg.connect(backup["URL"]) as connection:
        assert connection.execute("SELECT name FROM promised").fetchall() == [("ann",)]
    assert run(backup, "restore", "none.dump").returncode == 1
    assert "promised" in run(backup, "latest").stdout


def test_a_dump_that_is_cut_off_is_none(backup: dict[str, str], tmp_path: Path) -> None:
    cutting = tmp_path / "bin" / "pg_dump"
    cutting.parent.mkdir()
    cutting.write_text(
        f'#!/bin/sh\n{POSTGRES_PROGRAMS}/pg_dump "$@"\n'
        'for each; do case $each in --file=*) truncate -s -20 "${each#--file=}" ;; esac; done\n'
    )
    cutting.chmod(0o755)
    assert run(backup | {"PATH": f"{cutting.parent}{os.pathsep}{backup['PATH']}"}, "once").returncode == 1
    assert list(Path(backup["BACKUPS"]).iterdir()) == []


def test_a_dump_from_elsewhere_is_not_the_newest_and_stays(backup: dict[str, str]) -> None:
    mine = Path(backup["BACKUPS"]) / "mine.dump"
    mine.write_text("from elsewhere")
    assert run(backup | {"BACKUP_KEEP": "1"}, "once").returncode == 0
    assert mine.exists()
    assert "promised" in run(backup, "latest").stdout


def test_without_the_database_no_backup_is_made_and_none_is_lost(backup: dict[str, str]) -> None:
    assert run(backup, "once").returncode == 0
    assert run(backup | {"PGDATABASE": "nowhere"}, "once").returncode == 1
    assert len(list(Path(backup["BACKUPS"]).iterdir())) == 1
    assert run(backup, "onec").returncode == 2


def test_one_command_moves_every_image_to_what_its_tag_points_to(
    tmp_path: Path, system_environ: dict[str, str]
) -> None:
    for file in ("Dockerfile", *FILES):
        shutil.copy(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    registry = tmp_path / "bin" / "docker"
    registry.parent.mkdir()
    registry.write_text(
        '#!/bin/sh\ntest "$1" = pull || echo "$5@sha256:$(printf %s "$5$AGE" | sha256sum | cut -c1-64)"\n'
    )
    registry.chmod(0o755)
    environ = {**system_environ, "PATH": f"{registry.parent}:{system_environ['PATH']}"}
    for age in ("", "later"):
        subprocess.run(
            [tmp_path / "docker" / "digests.sh"], env={**environ, "AGE": age}, check=True, capture_output=True
        )
        pinned = "\n".join((tmp_path / file).read_text("utf-8") for file in ("Dockerfile", *FILES))
        images = re.findall(r"^(?:FROM| *image:) (?:&\w+ )?([a-z/]+:.+?)(?: AS \w+)?$", pinned, re.MULTILINE)
        assert len(images) == 7
        assert [image for image in images if not re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image)] == []
        assert [image for image in images if image.count("@") != 1] == []
    # Nothing else of the files is changed.
    for file in ("Dockerfile", *FILES):
        ours, pinned = (re.sub("@sha256:[0-9a-f]{64}", "", (at / file).read_text("utf-8")) for at in (ROOT, tmp_path))
        assert pinned == ours
