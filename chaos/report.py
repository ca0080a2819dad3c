"""The report at the end of a run: figures, a table by kind of fault, and the evidence for each breach."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos import checks
from chaos.checks import Result
from chaos.faults import KINDS, Happened
from chaos.load import Load
from chaos.world import OURS, World

EVIDENCE_MAILS = 5
EVIDENCE_LINES = 20


def figures(world: World, load: Load, result: Result, healed_in: float) -> None:
    answers = ", ".join(f"{count} x {answer}" for answer, count in load.answers.most_common())
    print(f"\nsignups        {answers}")
    print(f"answered in    {quantiles(load.seconds)}  at most {max(load.seconds, default=0):5.2f} s")
    rows = [
        ("committed", len(result.committed)),
        ("accepted", len(result.accepted)),
        ("rightly dead", len(result.rightly_dead)),
        ("lost", len(result.lost)),
        ("doubled", len(result.doubled)),
        ("not committed, but mailed", len(result.uncommitted)),
        ("not committed, but answered as done", len(result.forgotten)),
    ]
    if world.app is OURS:
        rows += [
            ("still on their way", len(result.unfinished)),
            ("made due by `flask mail retry`", len(world.hurried)),
            ("expired leases", len(result.expired_leases)),
            ("sent, but not in the ledger", len(result.falsely_sent)),
            ("wrongly dead, canceled or without a mail", len(result.falsely_ended)),
        ]
    for name, count in rows:
        print(f"{name:42} {count:6}")
    print(f"{'seconds from healed to quiet':42} {healed_in:6.1f}")
    for statement in world.frozen_at:
        print(f"frozen after   {statement[:100]}")


def duplicates(world: World, happened: Sequence[Happened], result: Result) -> int:
    """Print the duplicates and what excuses them; return the bound."""
    limit, reasons = checks.bound(world, happened, result)
    print(f"\nduplicates     {result.duplicates}, at most {limit} are excused:")
    for reason in reasons:
        print(f"  {reason}")
    print(
        f"  each of them has an excuse of its own besides: a lost lease (there were {result.leases_lost}),"
        " or no answer in time"
    )
    print("  nothing else may double a mail: not SIGTERM, not the queue, not the web, not a wrong clock, and not the")
    print("  database, since a worker keeps trying to write down what was accepted for as long as its lease lasts")
    return limit


def table(happened: Sequence[Happened], result: Result) -> None:
    """Print, for each kind of fault, how long emails that were due during it took to be accepted."""
    offset = time.time() - time.monotonic()
    taken = {address: mails[0].at + offset for address, mails in result.copies.items()}
    waits = {p.address: (p.due_at, taken[p.address] - p.due_at) for p in result.committed if p.address in taken}
    print(f"\n{'due during (faults overlap)':38} {'times':>5} {'mails':>6}   from due to accepted")
    for kind in KINDS:
        spans = [(event.begun, event.ended) for event in happened if event.fault.kind == kind]
        if not spans:
            continue
        found = [wait for due, wait in waits.values() if within(due, spans)]
        print(f"{kind:38} {len(spans):5} {len(found):6}   {quantiles(found)}")
    spans = [(event.begun, event.ended) for event in happened]
    found = [wait for due, wait in waits.values() if not within(due, spans)]
    print(f"{'(no fault)':38} {'':5} {len(found):6}   {quantiles(found)}")


def within(moment: float, spans: Sequence[tuple[float, float]]) -> bool:
    # A fault without a duration affects what is due in the second after it.
    return any(begun <= moment <= max(ended, begun + 1) for begun, ended in spans)


def quantiles(values: Sequence[float]) -> str:
    if not values:
        return "p50     -    p99     -"
    return f"p50 {quantile(values, 0.5):5.2f} s  p99 {quantile(values, 0.99):5.2f} s"


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def breaches(world: World, result: Result, limit: int) -> dict[str, list[str]]:
    """Return each broken promise, with the addresses concerned."""
    found = {
        "lost": result.lost,
        "mailed without being committed": result.uncommitted,
        "answered as done, and not committed": result.forgotten,
        "held up by a frozen neighbour": result.held_up,
        "still on their way": result.unfinished,
        "expired leases": result.expired_leases,
        "sent, but not in the ledger": result.falsely_sent,
        "wrongly dead, canceled or without a mail": result.falsely_ended,
        "duplicates that differ": result.differing,
        "duplicates without an excuse": result.unexplained,
        "more duplicates than the faults excuse": result.doubled if result.duplicates > limit else [],
        "did not end within 10 s of SIGTERM": world.stopped_slowly,
    }
    return {name: concerned for name, concerned in found.items() if concerned}


def evidence(name: str, addresses: Sequence[str], result: Result, folder: Path) -> None:
    print(f"\nBREACH {name}: {len(addresses)}")
    for address in addresses[:EVIDENCE_MAILS]:
        promise = result.concerns(address)
        print(f"  {address}: {promise.status if promise else 'no row'} {promise.email_id if promise else ''}")
        for mail in result.copies.get(address, []):
            at = time.strftime("%H:%M:%S", time.gmtime(mail.at + time.time() - time.monotonic()))
            print(f"    ledger {at} {mail.message_id} {'answered' if mail.is_answered else 'not answered'}")
        for attempt in promise.attempts if promise else []:
            print(f"    attempt {attempt}")
        for line in log_lines(folder, promise.email_id if promise else address):
            print(f"    {line}")


def log_lines(folder: Path, text: str) -> list[str]:
    found = []
    for log in sorted(folder.glob("*.log")):
        with log.open(errors="replace") as lines:
            found += [f"{log.stem}: {line.strip()[:300]}" for line in lines if text and text in line]
    return found[:EVIDENCE_LINES]


def events(folder: Path) -> None:
    """Print how often each warning and error was logged, and each traceback outside our log lines."""
    counts: Counter[str] = Counter()
    for log in sorted(folder.glob("*.log")):
        with log.open(errors="replace") as lines:
            counts.update(told(lines))
    print("\nlogged")
    for name, count in counts.most_common(25):
        print(f"  {count:6}  {name}")


def told(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line.startswith("{"):
            event = json.loads(line)
            if event.get("level") in {"warning", "error", "critical"}:
                # Huey names the task.
                yield f"{event['level']:8} {re.sub(r'[0-9a-f-]{36}', '…', event['event'])[:80]}"
        elif line.startswith("Traceback"):
            yield "traceback outside the log"
