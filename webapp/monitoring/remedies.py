"""Commands to type, as they work where we run: with Docker Compose, with systemd units, or from a shell."""

from __future__ import annotations

import os
from pathlib import Path

from flask import current_app
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import make_url

from webapp.db import outages
from webapp.delivery import heartbeats
from webapp.queue import redis_url

# This folder exists if systemd runs the machine; the units below are ours.
SYSTEMD = Path("/run/systemd/system")
UNITS = Path("/etc/systemd/system")
WEB, WORKER = "signup-web", "signup-worker"
# Compose's names for its own database and queue.
POSTGRES, REDIS = "postgres", "redis"


def flask(command: str) -> str:
    return outages.flask(command, compose())


def start_worker() -> str:
    if compose():
        return f"{compose()} up -d worker"
    return f"systemctl restart {WORKER}" if has_units() else heartbeats.START_WORKER


def replace_worker(host: str, pid: int) -> str:
    """Return the command that ends a frozen worker and starts another."""
    if compose():
        # "up" leaves a frozen one alone.
        return f"{compose()} restart worker"
    if has_units() or host != heartbeats.HOST or not is_worker(pid):
        return start_worker()
    return f"kill -KILL {pid}; {heartbeats.START_WORKER}"


def is_worker(pid: int) -> bool:
    """Return whether this pid is a consumer here, as far as this system tells: pids are reused."""
    try:
        return b"huey_consumer" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def apply_settings(check: str) -> str:
    """Return the command that applies changed settings; from a shell, the one that shows whether they are right."""
    if compose():
        # "restart" doesn't read .env, and "up" alone misses what changed in secrets/.
        return f"{compose()} up -d --force-recreate --no-deps web worker"
    return f"systemctl restart {WEB} {WORKER}" if has_units() else flask(check)


def migrate() -> str:
    return outages.of(current_app).migrate


def start_database() -> str:
    host, port = database_server()
    if file := database_file():
        return f"ls -ld {file.parent} {file}"
    if compose():
        return start_service(POSTGRES, host)
    return "systemctl start postgresql" if SYSTEMD.is_dir() and is_here(host) else f"pg_isready -h {host} -p {port}"


def start_service(service: str, host: str) -> str:
    """Return the command that starts this service of Docker Compose; for another host, apply_settings()."""
    # The name may be mistyped, and whoever types this may have no client of the database or of Redis.
    return f"{compose()} up -d {service}" if host == service else apply_settings("mail doctor")


def make_room() -> str:
    if file := database_file():
        return f"df -h {file.parent}"
    if compose() and database_server()[0] == POSTGRES:
        return f"{compose()} exec {POSTGRES} df -h /var/lib/postgresql/data"
    return "df -h" if is_here(database_server()[0]) else flask("mail prune")


def who_may_write() -> str:
    if file := database_file():
        return f"ls -ld {file.parent} {file}"
    return psql("SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')")


def new_database() -> str:
    return psql("CREATE DATABASE signup_utf8 ENCODING 'UTF8' TEMPLATE template0")


def psql(statement: str) -> str:
    host, port = database_server()
    if compose() and host == POSTGRES:
        return f'{compose()} exec {POSTGRES} psql -U signup -c "{statement}"'
    login = conninfo_to_dict(current_app.config["DATABASE_URL"])
    return f'psql -h {host} -p {port} -U {login.get("user", "postgres")} -d {login.get("dbname")} -c "{statement}"'


def start_queue() -> str:
    host, port = queue_server()
    if not host:
        return f"ls -ld {database_file() or '.'}"
    if compose():
        return start_service(REDIS, host)
    return f"systemctl start {REDIS}" if SYSTEMD.is_dir() and is_here(host) else f"redis-cli -h {host} -p {port} ping"


def queue_info(section: str) -> str:
    host, port = queue_server()
    if not host:
        return make_room()
    if compose() and host == REDIS:
        return f"{compose()} exec {REDIS} redis-cli info {section}"
    return f"redis-cli -h {host} -p {port} info {section}"


def set_clock() -> str:
    # A container uses the clock of its machine.
    return "timedatectl set-ntp true" if compose() or SYSTEMD.is_dir() else "date -u"


# Where we run, and with what.


def compose() -> str | None:
    command: str | None = current_app.config["COMPOSE_COMMAND"]
    return command


def has_units() -> bool:
    return SYSTEMD.is_dir() and (UNITS / f"{WORKER}.service").exists()


def is_here(host: str) -> bool:
    return host.startswith("/") or host in {"localhost", "127.0.0.1", "::1"}


def database_file() -> Path | None:
    url = current_app.config["DATABASE_URL"]
    return Path(make_url(url).database or "") if url.startswith("sqlite") else None


def database_server() -> tuple[str, str]:
    if database_file():
        return "", ""
    named = conninfo_to_dict(current_app.config["DATABASE_URL"])
    return str(named.get("host") or os.environ.get("PGHOST", "localhost")), str(named.get("port") or 5432)


def queue_server() -> tuple[str, int]:
    """Return host and port of Redis, or of the first node if there are several; the host is empty without Redis."""
    if not current_app.config["REDIS_URL"]:
        return "", 0
    url = redis_url.parse(current_app.config["REDIS_URL"])
    return (*url.nodes, (str(url.options.get("host", "localhost")), int(url.options.get("port", 6379))))[0]
