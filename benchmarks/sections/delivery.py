"""Emails a second, and CPU per email, compared with four rivals."""

from __future__ import annotations

from contextlib import ExitStack, closing

from benchmarks import contest
from benchmarks.contest import CELERY, DRAMATIQ, RIVALS, Contestant, Ours, Rival
from benchmarks.report import Report
from benchmarks.stage import Stage

ROUNDS = 5
MAILS = 1000
# Theirs take longer.
RIVALS_MAILS = 400


def run(stage: Stage, report: Report) -> None:
    contestants: dict[Contestant, int] = {}
    with ExitStack() as stack:
        for consumers in (1, 2):
            # A separate queue for each, since all of them run at once.
            queue = f"redis://127.0.0.1:{stage.valkey.port}/{consumers}"
            settings = stack.enter_context(stage.servers(REDIS_URL=queue))
            contestants[stack.enter_context(closing(Ours(settings, consumers)))] = MAILS
        for rival in RIVALS:
            contestants[stack.enter_context(closing(Rival(stage, rival)))] = RIVALS_MAILS
        results = contest.run_by_turns(stage, contestants, rounds=ROUNDS)
    one, two = (results[ours.name] for ours in contestants if isinstance(ours, Ours))
    celery, dramatiq = results[CELERY.name], results[DRAMATIQ.name]
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
