"""Redis with replicas: primaries that die or are replaced, with sentinels and in a cluster."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from harness.processes import Process, consumer, wait_until
from harness.redis_groups import ClusterGroup, Group, SentinelGroup
from harness.smtp_server import Server
from tests.system.test_journey import Environ, website_and_log
from tests.system.test_outages import sign_up_quickly

# Messages must flow again within this time after the primary's end.
BACK = 15
# A hint that is due in a second is seen by then, if at all.
HEARD = 4

pytestmark = pytest.mark.parametrize("backend", ["servers"], indirect=True)


@pytest.fixture(params=[SentinelGroup, ClusterGroup], ids=["sentinel", "cluster"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    with request.param(tmp_path / "redis") as group:
        yield group


@pytest.fixture
def with_group(group: Group, process_environ: Environ) -> Environ:
    # One web process has one breaker, whose state /readyz reports.
    own = {"REDIS_URL": group.url, "VERIFY_EMAIL_DELAY": "1", "LOG_FORMAT": "json", "WEB_CONCURRENCY": "1"}
    return process_environ | own


def sign_up(url: str, number: int) -> str:
    address = f"mick{number}@example.com"
    sign_up_quickly(url, username=f"mick{number}", email=address)
    return address


def wait_for_messages_to_flow(url: str, web: Process, worker: Process, seconds: float) -> list[str]:
    """Insist that signups hint again in time, and that a worker gets a hint; return who signed up.

    A hint written to a primary that is about to die may be lost: then a worker must get the next one.
    """
    deadline = time.monotonic() + seconds
    wait_until(lambda: httpx.get(f"{url}/readyz").json()["status"] == "ready", "the broker stayed down", seconds)
    addresses: list[str] = []
    while time.monotonic() < deadline:
        hints = len(web.events("enqueued task"))
        addresses.append(sign_up(url, 1000 + len(addresses)))
        wait_until(lambda: len(web.events("enqueued task")) > hints, "a signup did not hint", seconds)  # noqa: B023
        (hint,) = web.events("enqueued task")[hints:]
        heard_by = min(deadline, time.monotonic() + HEARD)
        while time.monotonic() < heard_by:
            if any(event["payload"] == hint["payload"] for event in worker.events("processed task")):
                return addresses
            # Until its log is read again.
            time.sleep(0.1)
    raise AssertionError("no worker heard of a signup")


@pytest.mark.parametrize("planned", [False, True], ids=["killed", "changed"])
def test_a_primary_that_goes_under_load_loses_no_mail_and_messages_flow_again_soon(
    group: Group,
    with_group: Environ,
    smtp: Server,
    planned: bool,  # noqa: FBT001
) -> None:
    with website_and_log(with_group) as (url, web), consumer(with_group) as worker:
        worker.wait_for_event("worker_started")
        addresses = [sign_up(url, number) for number in range(8)]
        if planned:
            group.fail_over()
        else:
            group.primary.kill()
        begun = time.monotonic()
        addresses += [sign_up(url, number) for number in range(8, 20)]
        addresses += wait_for_messages_to_flow(url, web, worker, begun + BACK - time.monotonic())
        for address in addresses:
            smtp.wait_for(address, seconds=30)
        assert worker.stop() == 0
    assert len(smtp.mails) == len(addresses)


def test_when_every_server_is_frozen_signups_answer_at_once_and_mails_arrive(
    group: Group, with_group: Environ, smtp: Server
) -> None:
    with website_and_log(with_group) as (url, web), consumer(with_group) as worker, ExitStack() as thawing:
        worker.wait_for_event("worker_started")
        sign_up(url, 0)
        for process in group.processes:
            process.send_signal(signal.SIGSTOP)
            thawing.callback(process.send_signal, signal.SIGCONT)
        addresses = [sign_up(url, number) for number in range(1, 4)]
        assert web.events("hint_failed")
        for address in addresses:
            smtp.wait_for(address, seconds=40)
        assert worker.stop() == 0
    assert len(smtp.mails) == 4
