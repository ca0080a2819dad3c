"""Where Huey keeps its messages: an SQLite file, or whichever Redis server is currently the primary."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Config
from huey.storage import BaseStorage, PriorityRedisStorage, SqliteStorage
from limits.storage import MemoryStorage, RedisStorage, Storage
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

# In the web a person is waiting. A worker waits a second for its next message (Huey's read_timeout), so its timeout
# must be longer than that: otherwise messages get lost.
WEB_TIMEOUT = 0.5
WORKER_TIMEOUT = 3.0

# After an outage of hours any number of messages may be due: a consumer takes this many at a time, since it holds them
# in memory.
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
    """Huey's queue in Redis: its keys begin with its name, and its schedule is read in parts."""

    def __init__(self, name: str, **options: Any) -> None:
        # Cleaning would strip the braces from the name.
        super().__init__(name, clean_name=False, **options)
        self.queue_key, self.schedule_key = f"{name}:queue", f"{name}:schedule"
        self.result_key, self.counter_key, self.notify_prefix = f"{name}:results", f"{name}:counters", f"{name}:notify:"
        self._pop = self.conn.register_script(POP_DUE)

    def convert_ts(self, ts: datetime) -> float:
        return seconds_of(ts)

    def write(self) -> None:
        """Write something that vanishes at once: a full server still answers reads."""
        self.conn.set(f"{self.name}:write", b"", px=1)


class SqliteQueue(SqliteStorage):
    """Huey's queue in an SQLite file: its schedule is read in parts."""

    def add_to_schedule(self, data: bytes, ts: datetime) -> None:
        super().add_to_schedule(data, ts.replace(tzinfo=UTC))

    def read_schedule(self, ts: datetime) -> list[bytes]:
        with self.db(commit=True) as cursor:
            cursor.execute(TAKE_DUE, (self.name, seconds_of(ts), DUE_MAX))
            return [data for (data,) in cursor.fetchall()]


def seconds_of(ts: datetime) -> float:
    """Return one of Huey's times in seconds. It is naive UTC, which Huey would take for the machine's local time."""
    return ts.replace(tzinfo=UTC).timestamp()


def create(name: str, config: Config, timeout: float) -> BaseStorage:
    """`timeout`: seconds that connecting, and each answer, may take."""
    if not config["REDIS_URL"]:
        return sqlite_storage(name, config, timeout)
    # Plain RedisStorage refuses priorities.
    return RedisQueue(key_prefix(config), connection_pool=redis_pool(config, timeout), read_timeout=1)


def key_prefix(config: Mapping[str, Any]) -> str:
    """Return the prefix of all our keys in Redis.

    A cluster hashes only what is in braces, so all of them are on one node, and one connection serves them.
    """
    prefix = str(config["REDIS_PREFIX"])
    return f"{{{prefix}}}" if redis_url.parse(config["REDIS_URL"]).is_cluster else prefix


def sqlite_storage(name: str, config: Config, timeout: float) -> BaseStorage:
    """Return the queue in its own file, so that its writers and the database's do not wait for each other."""
    url = make_url(config["SQLALCHEMY_DATABASE_URI"])
    file = INSTANCE / "queue.db"
    if url.drivername == "sqlite" and url.database:
        database = Path(url.database)
        file = database.with_name(f"{database.stem}-queue.db")
    file.parent.mkdir(parents=True, exist_ok=True)
    return SqliteQueue(name, filename=str(file), timeout=timeout)


def redis_pool(config: Mapping[str, Any], timeout: float) -> ConnectionPool:
    """Return a pool whose connections go to the server, or to whichever is the primary when they are opened.

    It connects only when it is used. `timeout`: seconds that finding the primary, connecting and each answer may take.
    """
    url = redis_url.parse(config["REDIS_URL"])
    if not url.nodes:
        return ConnectionPool.from_url(config["REDIS_URL"], **_within(timeout))
    # A node that does not answer must leave time for the others.
    each = _within(timeout / len(url.nodes)) | {"ssl": url.uses_tls}
    login = {name: value for name, value in url.options.items() if name != "db"}
    options = url.options | _within(timeout)
    if url.service:
        sentinel = Sentinel(url.nodes, sentinel_kwargs=login | each)
        return SentinelConnectionPool(url.service, sentinel, ssl=url.uses_tls, **options)
    nodes = ClusterNodes([Redis(host, port, **login, **each) for host, port in url.nodes], key_prefix(config))
    kind = ClusterSSLConnection if url.uses_tls else ClusterConnection
    return SentinelConnectionPool("cluster", nodes, connection_class=kind, **options)


def limits_storage(config: Mapping[str, Any]) -> Storage:
    """Return where requests are counted: in the same Redis, or in this process's memory.

    The library reads some URLs differently, and its own cluster client connects as soon as it is created, so it gets
    our pool.
    """
    if not config["REDIS_URL"]:
        return MemoryStorage()
    return RedisStorage("redis://", connection_pool=redis_pool(config, WEB_TIMEOUT), key_prefix=key_prefix(config))


def _within(timeout: float) -> dict[str, Any]:
    # A client that retries on its own waits several timeouts instead of one.
    return {"socket_connect_timeout": timeout, "socket_timeout": timeout, "retry": Retry(NoBackoff(), 0)}


class ClusterNodes:
    """Nodes of a cluster, any of which knows which one holds our keys, as any sentinel knows which server is primary.

    redis-py's own cluster client connects as soon as it is created, and makes threads wait while it looks for nodes.
    """

    def __init__(self, nodes: list[Redis], tag: str) -> None:
        self.nodes = nodes
        self.slot = key_slot(tag.encode())

    def discover_master(self, _service: str) -> tuple[str, int]:
        """Raises MasterNotFoundError."""
        errors = []
        # A node that is cut off from the others has stale data, so each lookup asks them in a random order.
        for node in random.sample(self.nodes, len(self.nodes)):  # nosec B311
            try:
                ranges = node.execute_command("CLUSTER SLOTS")
            except RedisError as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            for first, last, primary, *_replicas in ranges:
                if first <= self.slot <= last:
                    # Without a host it is the node that was asked.
                    host = primary[0].decode() if primary[0] else node.connection_pool.connection_kwargs["host"]
                    return host, primary[1]
        raise MasterNotFoundError(f"no node of the cluster knows who has our keys: {'; '.join(errors)}")


class ClusterConnection(SentinelManagedConnection):
    """A connection that reconnects to where our keys are, once its node says that they have moved."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except (AskError, ClusterDownError) as error:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise ConnectionError(f"the cluster has moved our keys: {error}") from error


class ClusterSSLConnection(ClusterConnection, SSLConnection):
    """The same with TLS."""
