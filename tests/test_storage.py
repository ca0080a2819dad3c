"""Which Redis server is spoken to, by what REDIS_URL says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trustme
from redis import ConnectionPool, Redis, RedisError
from redis.sentinel import SentinelConnectionPool

from tests.processes import free_port, wait_until
from tests.proxies import black_hole, listening, tls
from tests.servers import Valkey
from tests.test_outages import tls_context
from webapp.redis_url import parse
from webapp.storage import TAG, limits_storage, redis_pool


def test_sentinels_and_nodes_are_read_with_login_and_options() -> None:
    url = parse("redis+sentinel://mick:open%2Fsesame@a:1,b,[::1]:3/queue/2?socket_keepalive=yes")
    assert url.nodes == (("a", 1), ("b", 26379), ("::1", 3))
    assert url.service == "queue"
    assert url.options == {"username": "mick", "password": "open/sesame", "db": 2, "socket_keepalive": True}
    url = parse("rediss+cluster://:sesame@a,b:7000?ssl_ca_certs=/ca.pem")
    assert (url.nodes, url.service, url.uses_tls) == ((("a", 6379), ("b", 7000)), "", True)
    assert url.options == {"password": "sesame", "ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
def test_nodes_that_do_not_answer_together_take_no_longer_than_one_server(scheme: str) -> None:
    with listening(black_hole) as port:
        nodes = ",".join([f"127.0.0.1:{port}"] * 5)
        pool = redis_pool(f"{scheme}://{nodes}{'/queue' if 'sentinel' in scheme else ''}", timeout=0.5)
        begun = time.monotonic()
        with pytest.raises(RedisError, match="Timeout"):
            Redis(connection_pool=pool).ping()
        assert time.monotonic() - begun < 1


def test_a_cluster_over_tls_is_used_when_its_certificates_are_good_and_only_then(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    inside = free_port()
    with listening(tls(tls_context(authority), inside)) as port:
        config = {
            "cluster-enabled": "yes",
            "cluster-port": str(free_port()),
            "cluster-announce-port": str(port),
            "cluster-announce-hostname": "localhost",
            "cluster-preferred-endpoint-type": "hostname",
        }
        with Valkey(tmp_path / "node", config, port=inside), Redis(port=inside) as redis:
            redis.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: redis.cluster("info")["cluster_state"] == "ok", "the cluster stayed down")
            url = f"rediss+cluster://localhost:{port}"
            assert Redis(connection_pool=redis_pool(f"{url}?ssl_ca_certs={tmp_path}/ca.pem", 3)).set(TAG, "x")
            with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
                Redis(connection_pool=redis_pool(url, 3)).get(TAG)


@pytest.mark.parametrize("nodes", ["redis+sentinel://127.0.0.1:1/queue", "redis+cluster://127.0.0.1:1", "unix:///none"])
def test_the_rate_limiter_is_given_a_pool_that_connects_only_when_it_is_used(nodes: str) -> None:
    uri, options = limits_storage(nodes)
    assert uri == "redis://"
    # All its keys are on one node of a cluster.
    assert options["key_prefix"] == TAG
    pool = options["connection_pool"]
    assert isinstance(pool, ConnectionPool)
    assert isinstance(pool, SentinelConnectionPool) == ("+" in nodes)
    assert pool.connection_kwargs["socket_timeout"] == pool.connection_kwargs["socket_connect_timeout"] == 0.5
