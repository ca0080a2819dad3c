"""Which Redis server is used, by REDIS_URL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
import trustme
from limits import parse as parse_limit
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis import Redis, RedisError

from harness.processes import free_port, wait_until, within
from harness.proxies import black_hole, listening, tls
from harness.redis_groups import ClusterGroup, Group, SentinelGroup
from harness.servers import Valkey
from harness.visitor import Visitor
from tests.system.test_outages import tls_context
from webapp import create_app
from webapp.db.base import db
from webapp.queue.redis_url import parse
from webapp.queue.storage import RedisQueue, key_prefix, limits_storage, redis_pool


def at(url: str, prefix: str = "signup") -> dict[str, str]:
    return {"REDIS_URL": url, "REDIS_PREFIX": prefix}


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
        pool = redis_pool(at(f"{scheme}://{nodes}{'/queue' if 'sentinel' in scheme else ''}"), timeout=1)
        # One after the other they would take five seconds.
        with within(2), pytest.raises(RedisError, match="Timeout"):
            Redis(connection_pool=pool).ping()


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
            assert Redis(connection_pool=redis_pool(at(f"{url}?ssl_ca_certs={tmp_path}/ca.pem"), 3)).set(
                "{signup}", "x"
            )
            with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
                Redis(connection_pool=redis_pool(at(url), 3)).get("{signup}")


@pytest.mark.parametrize("url", ["redis+sentinel://127.0.0.1:1/queue", "redis+cluster://127.0.0.1:1", "unix:///none"])
def test_the_rate_limiter_connects_only_when_it_is_used(url: str) -> None:
    storage = limiter_storage(url)
    with pytest.raises(RedisError):
        MovingWindowRateLimiter(storage).hit(parse_limit("1/minute"), "mick")


def limiter_storage(url: str, prefix: str = "signup") -> RedisStorage:
    storage = limits_storage(at(url, prefix))
    assert isinstance(storage, RedisStorage)
    return storage


@pytest.mark.parametrize("kind", [SentinelGroup, ClusterGroup])
def test_limits_are_counted_together_and_go_on_counting_after_a_failover(
    kind: Callable[[Path], Group], tmp_path: Path
) -> None:
    with kind(tmp_path / "redis") as group:
        limiters = [MovingWindowRateLimiter(limiter_storage(group.url)) for _ in range(2)]
        allowed = [limiter.hit(parse_limit("3/minute"), "mick") for limiter in [*limiters, *limiters]]
        assert allowed == [True, True, True, False]
        group.fail_over()
        allowed.clear()

        def counts_again(limiter: MovingWindowRateLimiter) -> bool:
            # Each is told once that its connection leads to the former primary.
            with suppress(RedisError):
                allowed.append(limiter.hit(parse_limit("1/minute"), "ann"))
            return bool(allowed)

        wait_until(lambda: counts_again(limiters[0]), "it did not find the new primary")
        assert allowed.pop()
        wait_until(lambda: counts_again(limiters[1]), "the other did not find the new primary")
        assert not allowed.pop()


def test_apps_that_share_a_redis_see_nothing_of_each_other(valkey: Valkey) -> None:
    with Redis.from_url(valkey.url, decode_responses=True) as redis:
        redis.flushall()
        ours, theirs = (
            RedisQueue(prefix, connection_pool=redis_pool(at(valkey.url, prefix), 3), blocking=False)
            for prefix in ("shop", "wiki.2")
        )
        ours.enqueue(b"a hint", 1)
        ours.add_to_schedule(b"another", datetime(2030, 1, 1))  # noqa: DTZ001 - as Huey's are
        assert (theirs.dequeue(), theirs.queue_size(), theirs.schedule_size()) == (None, 0, 0)
        limiters = [MovingWindowRateLimiter(limiter_storage(valkey.url, prefix)) for prefix in ("shop", "wiki.2")]
        assert [limiter.hit(parse_limit("1/minute"), "mick") for limiter in [*limiters, *limiters]] == [
            *(True, True),
            *(False, False),
        ]
        assert sorted({key.partition(":")[0] for key in redis.scan_iter()}) == ["shop", "wiki.2"]
        theirs.flush_queue()
        theirs.flush_schedule()
        assert (ours.queue_size(), ours.schedule_size()) == (1, 1)


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_every_key_begins_with_the_prefix(environ: dict[str, str], cheap_passwords: None) -> None:
    app = create_app({**environ, "REDIS_PREFIX": "shop-2", "RATELIMIT_ENABLED": "true"})
    Visitor("http://signup.example", app).sign_up()
    with Redis.from_url(environ["REDIS_URL"], decode_responses=True) as redis:
        keys = redis.keys()
    assert "shop-2:schedule" in keys
    assert len(keys) >= 3
    assert [key for key in keys if not key.startswith("shop-2:")] == []
    with app.app_context():
        db.engine.dispose()


def test_in_a_cluster_the_prefix_is_what_is_hashed() -> None:
    assert key_prefix(at("redis+cluster://a,b", "shop")) == "{shop}"
    assert key_prefix(at("redis+sentinel://a,b/queue", "shop")) == "shop"
