"""Where Huey keeps its messages: an SQLite file, or whichever Redis server is the primary just now."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Config
from huey.storage import BaseStorage, PriorityRedisStorage, SqliteStorage
from redis import ConnectionPool, Redis, RedisError
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, ConnectionError  # noqa: A004 - the client's name for it
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool, SentinelManagedConnection
from sqlalchemy.engine import make_url

from webapp.paths import INSTANCE
from webapp.queue import redis_url

# A person waits for the web. A worker waits for its next message for a second (Huey's read_timeout), and
# must wait longer for an answer: below that, messages vanish.
WEB_TIMEOUT = 0.5
WORKER_TIMEOUT = 3.0

# After an outage of hours there may be any number of messages that are due: a consumer takes so many at a look, since
# it holds them in memory.
DUE_MAX = 500

POP_DUE = f"""
local due = redis.call('zrangebyscore', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, {DUE_MAX})
if #due > 0 then redis.call('zrem', KEYS[1], unpack(due)) end
return due
"""

TAKE_DUE = """
DELETE FROM schedule WHERE id IN (
    SELECT id FROM schedule WHERE queue = ? AND timestamp <= ? ORDER BY timestamp, id LIMIT ?
) RETURNING data
"""


class RedisQueue(PriorityRedisStorage):
    """Huey's queue in Redis, whose keys begin with its name, and whose schedule is read in parts."""

    def __init__(self, name: str, **options: Any) -> None:
        # A cleaned name would have no braces.
        super().__init__(name, clean_name=False, **options)
        self.queue_key, self.schedule_key = f"{name}:queue", f"{name}:schedule"
        self.result_key, self.counter_key, self.notify_prefix = f"{name}:results", f"{name}:counters", f"{name}:notify:"
        self._pop = self.conn.register_script(POP_DUE)

    def convert_ts(self, ts: datetime) -> float:
        return seconds_of(ts)


class SqliteQueue(SqliteStorage):
    """Huey's queue in an SQLite file, whose schedule is read in parts."""

    def add_to_schedule(self, data: bytes, ts: datetime) -> None:
        super().add_to_schedule(data, ts.replace(tzinfo=UTC))

    def read_schedule(self, ts: datetime) -> list[bytes]:
        with self.db(commit=True) as cursor:
            cursor.execute(TAKE_DUE, (self.name, seconds_of(ts), DUE_MAX))
            return [data for (data,) in cursor.fetchall()]


def seconds_of(ts: datetime) -> float:
    """Return a time of Huey's in seconds. It is UTC and does not say so: Huey takes it for each machine's own time."""
    return ts.replace(tzinfo=UTC).timestamp()


def create(name: str, config: Config, timeout: float) -> BaseStorage:
    """`timeout`: seconds that connecting, and each answer, may take."""
    if not config["REDIS_URL"]:
        return sqlite_storage(name, config, timeout)
    # Plain RedisStorage refuses priorities.
    return RedisQueue(key_prefix(config), connection_pool=redis_pool(config, timeout), read_timeout=1)


def key_prefix(config: Mapping[str, Any]) -> str:
    """Return what all our keys in Redis begin with.

    A cluster hashes what is in braces alone: so all of them are on one node, and one connection serves them.
    """
    prefix = str(config["REDIS_PREFIX"])
    return f"{{{prefix}}}" if redis_url.parse(config["REDIS_URL"]).is_cluster else prefix


def sqlite_storage(name: str, config: Config, timeout: float) -> BaseStorage:
    """Return the queue in a file of its own: its writers and the database's do not wait for each other."""
    url = make_url(config["SQLALCHEMY_DATABASE_URI"])
    file = INSTANCE / "queue.db"
    if url.drivername == "sqlite" and url.database:
        database = Path(url.database)
        file = database.with_name(f"{database.stem}-queue.db")
    file.parent.mkdir(parents=True, exist_ok=True)
    return SqliteQueue(name, filename=str(file), timeout=timeout)


def redis_pool(config: Mapping[str, Any], timeout: float) -> ConnectionPool:
    """Return a pool whose connections go to the server, or to whichever is the primary when they are made.

    It connects only when it is used. `timeout`: seconds that finding the primary, connecting and each answer may take.
    """
    url = redis_url.parse(config["REDIS_URL"])
    if not url.nodes:
        return ConnectionPool.from_url(config["REDIS_URL"], **_within(timeout))
    # One that does not answer must leave time for the others.
    each = _within(timeout / len(url.nodes)) | {"ssl": url.uses_tls}
    login = {name: value for name, value in url.options.items() if name != "db"}
    options = url.options | _within(timeout)
    if url.service:
        sentinel = Sentinel(url.nodes, sentinel_kwargs=login | each)
        return SentinelConnectionPool(url.service, sentinel, ssl=url.uses_tls, **options)
    nodes = ClusterNodes([Redis(host, port, **login, **each) for host, port in url.nodes], key_prefix(config))
    kind = ClusterSSLConnection if url.uses_tls else ClusterConnection
    return SentinelConnectionPool("cluster", nodes, connection_class=kind, **options)


def limits_storage(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return where Flask-Limiter counts: in the same Redis, or in this process's memory.

    It reads some URLs differently, and its own client of a cluster connects when it is made: so it is given our pool.
    """
    if not config["REDIS_URL"]:
        return {"RATELIMIT_STORAGE_URI": "memory://"}
    options = {"connection_pool": redis_pool(config, WEB_TIMEOUT), "key_prefix": key_prefix(config)}
    return {"RATELIMIT_STORAGE_URI": "redis://", "RATELIMIT_STORAGE_OPTIONS": options}


def _within(timeout: float) -> dict[str, Any]:
    # A client that tries again by itself waits several timeouts instead of one.
    return {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": Retry(NoBackoff(), 0)}


class ClusterNodes:
    """Nodes of a cluster, any of which knows who holds our keys: what sentinels are to the servers they watch over.

    redis-py's own cluster client connects when it is made, and lets threads wait in line while it looks for nodes.
    """

    def __init__(self, nodes: list[Redis], tag: str) -> None:
        self.nodes = nodes
        self.slot = key_slot(tag.encode())

    def discover_master(self, _service: str) -> tuple[str, int]:
        """Raises MasterNotFoundError."""
        errors = []
        # A node that is cut off from the others has old news, so it is not always the same one that is asked first.
        for node in random.sample(self.nodes, len(self.nodes)):  # nosec B311
            try:
                ranges = node.execute_command("CLUSTER SLOTS")
            except RedisError as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            for first, last, primary, *_replicas in ranges:
                if first <= self.slot <= last:
                    # Without a name it is the one that was asked.
                    host = primary[0].decode() if primary[0] else node.connection_pool.connection_kwargs["host"]
                    return host, primary[1]
        raise MasterNotFoundError(f"no node of the cluster knows who has our keys: {'; '.join(errors)}")


class ClusterConnection(SentinelManagedConnection):
    """A connection that is made anew, to where our keys are then, once its node says that they have moved."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (AskError, ClusterDownError) as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise ConnectionError(f"the cluster has moved our keys: {error}") from error


class ClusterSSLConnection(ClusterConnection, SSLConnection):
    """The same with TLS."""
