"""Parsing REDIS_URL: one server, the sentinels that watch over several, or the nodes of a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import ConnectionPool
from redis.connection import parse_url
from redis.exceptions import RedisError

SINGLE = "must look like redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/socket"
SENTINEL = "must look like redis+sentinel://host:26379,host:26379/service/0"
CLUSTER = "must look like redis+cluster://host:6379,host:6379, with nothing after the hosts"
SEVERAL = re.compile(r"(rediss?)\+(sentinel|cluster)://(?:([^@/?#]*)@)?([^@/?#]*)(/[^?#]*)?(?:\?([^#]*))?")


@dataclass(frozen=True)
class RedisURL:
    """`options`: what redis.Redis takes other than host and port; the same for each node."""

    options: dict[str, Any]
    # Host and port of the sentinels or cluster nodes; empty for a single server.
    nodes: tuple[tuple[str, int], ...] = ()
    # The sentinels' name for the servers they watch over; empty without sentinels.
    service: str = ""
    uses_tls: bool = False

    @property
    def is_cluster(self) -> bool:
        return bool(self.nodes and not self.service)


def parse(raw: str) -> RedisURL:
    """Raises ValueError, which says what the URL must look like."""
    found = SEVERAL.fullmatch(raw)
    if not found:
        if re.match(r"rediss?\+(sentinel|cluster):", raw):
            raise ValueError(SENTINEL if "+sentinel:" in raw else CLUSTER)
        return RedisURL(_options(raw, SINGLE))
    scheme, kind, login, hosts, path, query = found.groups(default="")
    service, _, database = path.strip("/").partition("/")
    advice = SENTINEL if kind == "sentinel" else CLUSTER
    if (kind == "sentinel") != bool(service):
        raise ValueError(advice)
    ends = f"/{database}?{query}" if query else f"/{database}"
    each = [_options(f"{scheme}://{login}@{host}{ends}", advice) for host in hosts.split(",")]
    port = 26379 if kind == "sentinel" else 6379
    nodes = tuple((options.pop("host"), options.pop("port", port)) for options in each)
    options = each[0]
    options.pop("connection_class", None)
    return RedisURL(options, nodes, service, uses_tls=scheme == "rediss")


def _options(url: str, advice: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        is_host = parts.scheme in {"redis", "rediss"} and parts.hostname and re.fullmatch(r"(/\d*)?", parts.path)
        is_socket = parts.scheme == "unix" and parts.path.startswith("/")
        if (is_host and parts.port != 0) or is_socket:
            # The client itself knows which options are valid.
            ConnectionPool.from_url(url).make_connection()
            options: dict[str, Any] = parse_url(url)
            return options
    except (ValueError, TypeError, RedisError):
        pass
    raise ValueError(advice)
