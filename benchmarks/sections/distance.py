"""Sending over TLS to a mail server that is 20 ms away: how much a kept connection saves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import trustme

from benchmarks import contest
from benchmarks.contest import HUEY, Ours, Result, Rival
from benchmarks.report import Report
from benchmarks.stage import Stage
from harness.processes import Process, free_port, wait_for_port

ROUND_TRIP_MS = 20
ROUNDS = 2
# Several batches for each of eight workers: with fewer emails we would mostly measure the last batch.
MAILS = 1800
RIVALS_MAILS = 150


def run(stage: Stage, report: Report) -> None:
    results: list[tuple[str, Result]] = []
    with far_server(stage) as far:
        with closing(Rival(stage, HUEY, **far)) as rival:
            theirs = contest.run(stage, rival, mails=RIVALS_MAILS, rounds=ROUNDS, warm_up=40)
        results.append(("a connection per mail: Huey, 4 threads, Flask-Mail", theirs))
        for consumers in (1, 2):
            with stage.servers(**far) as settings, closing(Ours(settings, consumers)) as ours:
                results.append((ours.name, contest.run(stage, ours, mails=MAILS, rounds=ROUNDS, warm_up=40)))
    one, two = (result for _, result in results[1:])
    report.say(f"TLS, {ROUND_TRIP_MS} ms round trip; median of {ROUNDS} rounds of {MAILS} mails ({RIVALS_MAILS}).", "")
    report.table(
        ["worker", "mails/s", "of a connection per mail", "worker CPU ms a mail"],
        [[name, result.rate, result.rate / theirs.rate, result.cpu] for name, result in results],
    )
    report.target("one consumer, times a connection per mail", one.rate / theirs.rate, "at least", 5)
    report.target("two consumers, times one", two.rate / one.rate, "at least", 1.7)


@contextmanager
def far_server(stage: Stage) -> Iterator[dict[str, str]]:
    """Yield settings with a mail server that is far away and has a trusted certificate."""
    authority = trustme.CA()
    trusted, certificate = stage.folder / "trusted.pem", stage.folder / "far.pem"
    authority.cert_pem.write_to_path(str(trusted))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    port = free_port()
    arguments = [str(port), str(stage.sink_port), str(certificate), str(ROUND_TRIP_MS)]
    with Process(sys.executable, "-m", "benchmarks.far", *arguments, environ=stage.system):
        wait_for_port(port)
        yield {"MAIL_PORT": str(port), "MAIL_USE_SSL": "true", "SSL_CERT_FILE": str(trusted)}
