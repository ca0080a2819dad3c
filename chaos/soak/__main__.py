"""`python -m chaos.soak`: a day's load in an hour, without faults, with a line of figures for every hour."""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from chaos import report, runs
from chaos.soak import people, verdict
from chaos.soak.figures import Watch
from chaos.soak.stage import OPERATOR, Stage, stage
from chaos.soak.town import Account, Town
from webapp.db.base import db
from webapp.monitoring import doctor

# A day, as shares of the busiest hour. The evening repeats the morning, and quiet hours precede both: what is higher in
# the evening has grown.
NIGHT = [0.3, 0.1, 0.1, 0.1, 0.2, 0.3]
BUSY = [0.5, 0.8, 1.0, 1.0, 0.8, 0.6]
AFTERNOON = [0.6, 0.6, 0.5, 0.4, 0.2, 0.3]
CURVE = [*NIGHT, *BUSY, *AFTERNOON, *BUSY]
# Signups a second in the busiest hour, and as many visits of people who have an account.
RATE = 1.5
# In a shorter run the processes are still loading what they need, so growth is not judged.
JUDGED_MINUTES = 5.0
# Retention counts in short days: so many to an hour of the load, each of at least so many seconds, since people take
# their time.
DAYS = 7
DAY_SECONDS = 3.0
LOOK_SECONDS = 2.0
# The operator looks once an hour of the load, but no more often than this.
OPERATE_SECONDS = 10.0
# How long emails may still be on their way once everybody has left.
PATIENCE = 60.0

# Each with its number of decimals.
COLUMNS = {
    "signups": 0,
    "accepted": 0,
    "ms p50": 0,
    "ms p99": 0,
    "due p50": 2,
    "due p99": 2,
    "5xx": 0,
    "web": 0,
    "workers": 0,
    "files": 0,
    "threads": 0,
    "connections": 0,
    "users": 0,
    "emails": 0,
    "events": 0,
    "database": 1,
    "redis": 2,
    "keys": 0,
    "log": 0,
}
LEGEND = """\
ms: response time as visitors see it; due: seconds from due to accepted; web, workers: resident MB of their processes
(shared memory counts for each); files, threads: of web and workers; connections: to the database; users, emails,
events: rows; database, redis: MB; keys: in Redis; log: kB written in this hour. All but times and counts are medians
of the hour."""
SHOWN = 10
WIDEST = 400


def main() -> int:
    """Return 1 if the verdict is bad."""
    arguments = parse()
    # No child outlives it, however it is ended. Shells let background jobs ignore Ctrl-C, so set both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        return int(runs.in_folder("soak-", lambda folder: run(arguments, folder), keep=arguments.keep))
    except KeyboardInterrupt:
        print("\nended early: no verdict")
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="how long the day is")
    parser.add_argument("--rate", type=float, default=RATE, help="signups a second in its busiest hour")
    parser.add_argument("--seed", type=int, default=1, help="the same seed sends the same people")
    runs.add_keep(parser)
    return parser.parse_args()


def run(arguments: argparse.Namespace, folder: Path) -> bool:
    """Return whether the verdict is bad."""
    length = arguments.minutes * 60 / len(CURVE)
    day = max(DAY_SECONDS, length / DAYS)
    is_long = arguments.minutes >= JUDGED_MINUTES
    print(f"{len(CURVE)} hours of {length:.1f} s each; for retention a day is {day:.1f} s", flush=True)
    with (
        stage(folder, day) as parts,
        Town(parts.url, parts.mailbox, newcomers=people.NEWCOMERS, members=people.MEMBERS, seed=arguments.seed) as town,
        Watch(parts, LOOK_SECONDS) as watch,
    ):
        if is_long:
            # So that every process has all the threads and connections it will ever have.
            town.crowd()
            town.hour()
            watch.hour()
        hours = play(parts, town, watch, arguments.rate, length)
        town.finish()
        watch.close()
        settle_down(watch)
        broken = judge(parts, town, watch, hours, is_long=is_long)
    report.events(folder)
    for what, found in broken.items():
        print(f"\nBROKEN {what}: {len(found)}")
        for one in found[:SHOWN]:
            print(f"  {one[:WIDEST]}")
    print("\n" + ("BROKEN: " + ", ".join(broken) if broken else "everything is as it must be"))
    return bool(broken)


def play(parts: Stage, town: Town, watch: Watch, rate: float, length: float) -> list[dict[str, float]]:
    """Play the day, and print a line for every hour."""
    print(f"\n{LEGEND}\n\nhour  {'  '.join(f'{name:>{width(name)}}' for name in COLUMNS)}", flush=True)
    operator = Account(OPERATOR, f"{OPERATOR}@example.com", parts.password)
    arrivals = itertools.cycle((town.newcomer, town.member))
    hours: list[dict[str, float]] = []
    accepted = len(parts.mailbox.taken)
    operated = 0.0
    begun = due = time.monotonic()
    for number, share in enumerate(CURVE):
        if time.monotonic() > operated + OPERATE_SECONDS:
            operated = time.monotonic()
            town.send(people.operate, operator)
        ends = begun + (number + 1) * length
        while due < ends:
            time.sleep(max(0.0, due - time.monotonic()))
            next(arrivals)()
            due += town.rng.uniform(0.5, 1.5) / (2 * rate * share)
        time.sleep(max(0.0, ends - time.monotonic()))
        hours.append(told(town, watch, accepted))
        accepted = len(parts.mailbox.taken)
        print(line(number, hours[-1]), flush=True)
    return hours


def told(town: Town, watch: Watch, before: int) -> dict[str, float]:
    """Return the figures of the hour that just ended; `before`: how many emails had been accepted before it."""
    watch.try_to(watch.read_emails)
    seen = town.hour()
    taken = town.mailbox.taken[before:]
    waits = [one.at - watch.emails[one.message_id].due_at for one in taken if one.message_id in watch.emails]
    return {
        "signups": seen.signups,
        "accepted": len(taken),
        **quantiles("ms", [1000 * seconds for seconds in seen.seconds]),
        **quantiles("due", waits),
        "5xx": sum(status >= 500 for status in seen.statuses),
        **watch.hour(),
    }


def quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    return {f"{name} p{share}": report.quantile(values, share / 100) if values else 0 for share in (50, 99)}


def line(number: int, hour: Mapping[str, float]) -> str:
    columns = (f"{hour[name]:{width(name)}.{digits}f}" for name, digits in COLUMNS.items())
    return f"{number:4}  {'  '.join(columns)}"


def width(name: str) -> int:
    return max(4, len(name))


def settle_down(watch: Watch) -> None:
    """Wait until no email is on its way."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        watch.try_to(watch.read_emails)
        if not any(email.is_on_its_way for email in watch.emails.values()):
            return
        time.sleep(1)


def judge(
    parts: Stage, town: Town, watch: Watch, hours: Sequence[Mapping[str, float]], *, is_long: bool
) -> dict[str, Sequence[str]]:
    """Print what became of the emails, and return what is wrong, each with what it concerns."""
    taken = parts.mailbox.taken
    print(f"\n{len(watch.emails)} emails promised, {len(taken)} accepted; the others ended rightly:")
    for why, count in verdict.rightly_ended(watch.emails).most_common():
        print(f"{count:6}  {why}")
    if not is_long:
        print(f"growth is not judged: that takes {JUDGED_MINUTES:.0f} minutes")
    with parts.app.app_context():
        findings = [f"{one.text}: {one.command}" for one in doctor.examine().findings if one.check != "many_dead"]
        db.engine.dispose()
    watch.try_to(watch.scrape)
    found = {
        **verdict.of_emails(watch.emails, taken, town.acknowledged),
        "visits that went wrong": town.failures,
        "answers of 5xx": town.errors,
        "watching failed, or a counter went down": watch.failures,
        "counted wrongly": verdict.of_counters(watch.counters, len(taken)),
        "found by doctor": findings,
        "growing": verdict.growth(hours) if is_long else [],
        "did not end when asked": parts.stop(),
        "logged": [text for log in parts.logs for text in verdict.errors(log.read_text(errors="replace").splitlines())],
    }
    return {what: concerned for what, concerned in found.items() if concerned}


if __name__ == "__main__":
    sys.exit(main())
