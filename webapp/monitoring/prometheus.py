"""The metrics, in Prometheus' text format: computed from rows, so that every process reports the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from webapp import counters
from webapp.extensions import huey
from webapp.monitoring import queries
from webapp.queue.broker_breaker import BrokerDown
from webapp.version import RELEASE, build

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# How an attempt can end; each is reported from the start, so that the first one shows as an increase.
OUTCOMES = ("sent", "deferred", "failed", "returned", "canceled", "lease_expired")

Samples = Iterable[tuple[Mapping[str, str], float]]


def render() -> str:
    return "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    now = queries.stats()
    attempts = counters.grown(counters.attempts)
    events = counters.grown(counters.events)
    workers = queries.workers()
    queued = _hints_waiting()

    build_info = {"version": RELEASE, "build": build()}
    yield from _gauge("build_info", "Release and build.", [(build_info, 1)])
    yield from _gauge("mails", "Emails by state.", [({"state": state}, n) for state, n in now.by_status.items()])
    yield from _gauge("mails_due", "Emails that are due.", [({}, now.due)])
    yield from _gauge(
        "oldest_due_age_seconds",
        "Age of the email that has been due the longest.",
        [({}, now.oldest_due_seconds or 0)],
    )
    yield from _counter(
        "delivery_attempts_total",
        "Delivery attempts by outcome.",
        [({"outcome": outcome}, attempts.get(outcome, 0)) for outcome in OUTCOMES],
    )
    yield from _acceptance()
    yield from _counter(
        "leases_expired_total",
        "Emails taken back from workers that did not record an outcome.",
        [({}, attempts.get("lease_expired", 0))],
    )
    yield from _counter(
        "fenced_writes_total",
        "Outcomes that were not written because the worker had lost its lease.",
        [({}, counters.counted(counters.FENCED_WRITES))],
    )
    yield from _counter(
        "hint_failures_total",
        "Hints that could not be queued; the relay sends those emails anyway.",
        [({}, counters.counted(counters.HINT_FAILURES))],
    )
    yield from _gauge("broker_up", "Whether the queue answers.", [({}, queued is not None)])
    yield from _gauge("hints_waiting", "Hints and other tasks in the queue.", [({}, queued or 0)])
    yield from _gauge("mail_server_up", "Whether the breaker is closed.", [({}, now.breaker_seconds is None)])
    yield from _gauge("mail_paused", "Whether an operator paused all email.", [({}, now.paused_seconds is not None)])
    yield from _gauge("workers_alive", "Consumers with a recent heartbeat.", [({}, now.workers)])
    yield from _gauge(
        "worker_heartbeat_timestamp_seconds",
        "Time of each consumer's last heartbeat.",
        [({"host": worker.host, "pid": str(worker.pid)}, worker.seen_at.timestamp()) for worker in workers],
    )
    yield from _counter("signups_total", "Signups.", [({}, events.get("signed_up", 0))])
    yield from _counter("verifications_total", "Users who proved their address.", [({}, events.get("verified", 0))])


def _hints_waiting() -> int | None:
    try:
        return huey.waiting()
    except BrokerDown:
        return None


def _acceptance() -> Iterator[str]:
    by_bound = counters.grown(counters.accepted)
    seconds = counters.grown(counters.accepted_seconds).get("", 0)
    name = "time_to_accept_seconds"
    yield from _head(name, "From when an email was queued until the mail server accepted it.", "histogram")
    below = 0.0
    for label in [*(f"{bound:g}" for bound in counters.ACCEPT_BOUNDS), counters.BEYOND]:
        below += by_bound.get(label, 0)
        yield _sample(f"{name}_bucket", {"le": label}, below)
    yield _sample(f"{name}_sum", {}, seconds)
    yield _sample(f"{name}_count", {}, below)


def _gauge(name: str, about: str, samples: Samples) -> Iterator[str]:
    yield from _metric(name, about, "gauge", samples)


def _counter(name: str, about: str, samples: Samples) -> Iterator[str]:
    yield from _metric(name, about, "counter", samples)


def _metric(name: str, about: str, kind: str, samples: Samples) -> Iterator[str]:
    yield from _head(name, about, kind)
    for labels, value in samples:
        yield _sample(name, labels, value)


def _head(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP signup_{name} {about}"
    yield f"# TYPE signup_{name} {kind}"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    quoted = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"signup_{name}{{{quoted}}} {value:.16g}" if quoted else f"signup_{name} {value:.16g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
