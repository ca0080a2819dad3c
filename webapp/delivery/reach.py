"""Whether this process alone fails to reach the mail server: then it leaves emails and probes to the others."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog
from flask import current_app

from webapp.delivery import heartbeats
from webapp.delivery.circuit_breaker import PROBE_SECONDS
from webapp.outbox import attempts

log = structlog.get_logger(__name__)

SHORTEST_REST = 2.0


@dataclass
class Reach:
    """This process's failures to reach the server: since when, whether they are logged, and what it waits for."""

    failing_since: float | None = None
    is_logged: bool = False
    rests_until: float = 0.0
    probes_after: float = 0.0


def do_others_reach_it() -> bool:
    """Return whether the server took an email from another process so recently that it must be up."""
    return attempts.accepted_within(PROBE_SECONDS, but_by=heartbeats.NAME)


def note_outage() -> bool:
    """Leave the next probe to another consumer; return whether there is any, which may probe at once."""
    _of_process().probes_after = time.monotonic() + PROBE_SECONDS + SHORTEST_REST
    return heartbeats.are_others_alive()


def may_probe() -> bool:
    """Return whether this process may probe the server: for a while after a failure only if it is the only one."""
    return not is_resting() and (time.monotonic() >= _of_process().probes_after or not heartbeats.are_others_alive())


def note_failure(reason: str) -> None:
    """Rest, the longer the longer this process has been failing.

    In an outage nobody's email is accepted any more, and the breaker opens before this is logged.
    """
    reach, now = _of_process(), time.monotonic()
    if reach.failing_since is None or now > reach.rests_until + PROBE_SECONDS:
        reach.failing_since, reach.is_logged = now, False
    failing_for = now - reach.failing_since
    if failing_for > PROBE_SECONDS and not reach.is_logged:
        reach.is_logged = True
        log.error("mail_server_down_for_us", reason=reason, worker=heartbeats.NAME)
    reach.rests_until = now + min(max(SHORTEST_REST, failing_for), PROBE_SECONDS)


def note_success() -> None:
    _of_process().failing_since = None


def is_resting() -> bool:
    return time.monotonic() < _of_process().rests_until


def _of_process() -> Reach:
    reach: Reach = current_app.extensions.setdefault("mail_reach", Reach())
    return reach
