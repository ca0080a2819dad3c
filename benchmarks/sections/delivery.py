"""Mails a second, and CPU a mail, beside four rivals."""

from __future__ import annotations

from contextlib import closing

from benchmarks import contest
from benchmarks.contest import CELERY, DRAMATIQ, RIVALS, Ours, Result, Rival
from benchmarks.report import Report
from benchmarks.stage import Stage

ROUNDS = 3
MAILS = 1000
# Theirs take longer.
RIVALS_MAILS = 400


def run(stage: Stage, report: Report) -> None:
    results: dict[str, Result] = {}
    for rival in RIVALS:
        with closing(Rival(stage, rival)) as theirs:
            results[rival.name] = contest.run(stage, theirs, mails=RIVALS_MAILS, rounds=ROUNDS)
    for consumers in (1, 2):
        with stage.servers() as settings, closing(Ours(settings, consumers)) as ours:
            results[ours.name] = contest.run(stage, ours, mails=MAILS, rounds=ROUNDS)
    celery, dramatiq = results[CELERY.name], results[DRAMATIQ.name]
    one, two = list(results.values())[-2:]
    report.say(
        f"Median of {ROUNDS} rounds of {RIVALS_MAILS} mails (this app: {MAILS}). The rivals' job is naive: load the",
        "user, insert a row, render the same mail, build it, send it, mark the row, commit. Ours keeps its claims,",
        "leases, attempts and limits.",
        "",
    )
    report.table(
        ["worker", "mails/s", "worker CPU ms a mail", "of Celery's", "PostgreSQL CPU ms a mail"],
        [
            [name, result.rate, result.cpu, result.cpu / celery.cpu, result.database_cpu]
            for name, result in results.items()
        ],
    )
    report.target("worker CPU a mail, of Celery's", one.cpu / celery.cpu, "at most", 0.25)
    report.target("worker CPU a mail, of Dramatiq's", one.cpu / dramatiq.cpu, "at most", 0.4)
    report.target("mails a second, times Celery's", max(one.rate, two.rate) / celery.rate, "at least", 4)
    report.target("the stretch: Celery's CPU a mail, times ours", celery.cpu / one.cpu, "at least", 8)
