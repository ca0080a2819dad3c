"""`make model`: have spin check every state of outbox.pml: what holds, and what breaks without each fence."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

MODEL = Path(__file__).with_name("outbox.pml")
TOOLS = ("spin", "gcc")
AT_ONCE = 2

STUCK = "nothing is stuck"
ARRIVED = "what may have arrived ends sent, or in doubt"
COPY = "one copy, or an excuse"
HOLDER = "one holder past the dot"
OUTCOME = "outcomes are the holder's"
DOUBT = "at most two more tries in doubt"
CANCELED = "canceled mails stay so"
MESSAGE_ID = "one Message-ID"
PROMISE = "one mail a promise"
SERVED = "what made way is served"
WAITS = "nobody waits for the frozen"
ENDS = "every run ends"

# Every run checks all of them except the last, which needs a separate search.
PROPERTIES = (STUCK, HOLDER, COPY, ARRIVED, OUTCOME, DOUBT, CANCELED, MESSAGE_ID, PROMISE, SERVED, WAITS)


@dataclass(frozen=True)
class Bounds:
    """How many faults, operator and user actions, and attempts a run may have."""

    faults: int
    acts: int
    attempts: int

    def __str__(self) -> str:
        return f"{self.faults} faults\n{self.acts} acts\n{self.attempts} attempts"


WHOLE = (Bounds(2, 0, 2), Bounds(1, 2, 4))
QUICK = (Bounds(1, 1, 2),)


@dataclass(frozen=True)
class Fence:
    """A fence that keeps a property, and the bounds within which its absence shows."""

    name: str
    what: str
    breaks: str
    bounds: Bounds = Bounds(1, 0, 2)


FENCES = (
    Fence("NO_CLAIM_FENCE", "a claim locks the row that it chooses", COPY, Bounds(0, 0, 2)),
    Fence("NO_TOKEN_FENCE", "outcomes ask for the lease's token", OUTCOME),
    Fence("NO_LEASE_FENCE", "mails are taken back after their lease alone", COPY, Bounds(0, 0, 2)),
    Fence("NO_MARGIN_FENCE", "the final dot asks for enough of the lease", COPY),
    Fence("NO_BEGUN_FENCE", "a lease counts from before its claim", COPY),
    Fence("NO_RENEWAL_FENCE", "a lease is renewed while an answer is awaited", COPY, Bounds(0, 0, 2)),
    Fence("NO_SUSPEND_FENCE", "a worker's clock goes on while its machine sleeps", HOLDER),
    Fence("NO_CLOCK_FENCE", "times too far ahead count as now", STUCK),
    Fence("NO_TRANSACTION_FENCE", "the database ends idle transactions", STUCK),
    Fence("NO_SKIP_FENCE", "who takes mails back skips locked rows", WAITS, Bounds(2, 0, 2)),
    Fence("NO_RELAY_FENCE", "the relay hints what is due", STUCK),
    Fence("NO_PROBE_FENCE", "the relay probes while the breaker is open", STUCK),
    Fence("NO_DOUBT_FENCE", "what is taken back is in doubt", ARRIVED),
    Fence("NO_LAST_DOUBT_FENCE", "so is what ends without an answer", ARRIVED, Bounds(0, 0, 1)),
    Fence("NO_UNCONFIRMED_FENCE", "doubt ends a mail after two more tries", DOUBT, Bounds(0, 0, 5)),
    Fence("NO_CANCELED_FENCE", "only dead mails are revived", CANCELED, Bounds(0, 2, 2)),
    Fence("NO_IDENTITY_FENCE", "a revived mail keeps its Message-ID", MESSAGE_ID, Bounds(0, 1, 1)),
    Fence("NO_SUCCESSOR_FENCE", "none is revived beside its successor", PROMISE, Bounds(0, 1, 2)),
    Fence("NO_SUPERSEDE_FENCE", "older mails end once the newer was sent", SERVED, Bounds(0, 1, 2)),
)


@dataclass(frozen=True)
class Found:
    """The result of one search: what broke, if anything, and the steps that lead there."""

    states: int
    seconds: float
    broken: str | None
    steps: list[str]


def missing() -> list[str]:
    return [tool for tool in TOOLS if not shutil.which(tool)]


def search(bounds: Bounds, fence: str | None = None, *, for_cycles: bool = False) -> Found:
    """Check every state within these bounds; without a fence, breadth first, to find the shortest path to a failure."""
    defined = [f"-DFAULTS={bounds.faults}", f"-DACTS={bounds.acts}", f"-DATTEMPTS={bounds.attempts}"]
    compiled = ["-DNP"] if for_cycles else ["-DSAFETY"]
    # Optimizing would take longer than so small a search.
    compiled += ["-O0", "-DBFS"] if fence else ["-O1"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="model-") as directory:
        # spin puts the steps that lead to a failure beside it.
        shutil.copy(MODEL, directory)
        run(directory, "spin", *defined, *([f"-D{fence}"] if fence else []), "-a", MODEL.name)
        run(directory, "gcc", "-w", "-DNOFAIR", *compiled, "-o", "pan", "pan.c")
        # -E: `quiet` checks the states in which nothing happens any more, and knows which of them are valid.
        said = run(directory, "./pan", "-E", "-m100000", "-w20", *(["-l"] if for_cycles else []))
        steps = []
        if trail := next(Path(directory).glob("*.trail"), None):
            shown = run(directory, "./pan", "-r", "-n", trail.name, check=False)
            steps = [line for line in shown.splitlines() if re.match(r"worker|the |time|BROKEN|<<<<<", line)]
    states = re.search(r"(\d[\d.e+]*) states, stored", said)
    if states is None or "max search depth too small" in said or "out of memory" in said:
        raise RuntimeError(said)
    broken = None
    if not re.search(r"errors: 0$", said, re.MULTILINE):
        broken = steps.pop().removeprefix("BROKEN: ") if steps and steps[-1].startswith("BROKEN") else ENDS
    return Found(int(float(states[1])), time.monotonic() - begun, broken, steps)


def run(directory: str, *command: str, check: bool = True) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="make model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer faults and acts")
    parser.add_argument("--steps", action="store_true", help="show how each property breaks")
    chosen = parser.parse_args()
    if gone := missing():
        sys.exit(f"{' and '.join(gone)} missing: apt install {' '.join(gone)}")
    # Wide enough even without a terminal that says its width.
    console = Console(width=max(110, Console().width))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        searches = [(bounds, pool.submit(search, bounds)) for bounds in (QUICK if chosen.quick else WHOLE)]
        ending = (QUICK[0], pool.submit(search, QUICK[0], for_cycles=True))
        without = [(fence, pool.submit(search, fence.bounds, fence.name)) for fence in FENCES]
        found = [(bounds, job.result()) for bounds, job in searches]
        is_well = show_properties(console, found, (ending[0], ending[1].result()))
        is_needed = show_fences(console, [(fence, job.result()) for fence, job in without], steps=chosen.steps)
    return 0 if is_well and is_needed else 1


def show_properties(console: Console, found: list[tuple[Bounds, Found]], ending: tuple[Bounds, Found]) -> bool:
    """Print whether each property holds, and how much was checked."""
    searches = [*found, ending]
    table = Table("property", *(str(bounds) for bounds, _one in searches), title="In every state that can be reached")
    for held in PROPERTIES:
        table.add_row(held, *(verdict(held, one) for _bounds, one in found), "")
    table.add_row(ENDS, *("" for _ in found), verdict(ENDS, ending[1]), end_section=True)
    table.add_row("states", *(f"{one.states:,}" for _bounds, one in searches))
    table.add_row("seconds", *(f"{one.seconds:.0f}" for _bounds, one in searches))
    console.print(table)
    for _bounds, one in searches:
        if one.broken:
            console.print(f"{one.broken} is broken by:", *one.steps, sep="\n  ")
    return not any(one.broken for _bounds, one in searches)


def verdict(held: str, one: Found) -> str:
    # A search ends with the first property that breaks.
    return "BROKEN" if one.broken == held else "not known" if one.broken else "ok"


def show_fences(console: Console, found: list[tuple[Fence, Found]], *, steps: bool) -> bool:
    """Print what breaks without each fence."""
    table = Table("without this", "breaks", "in steps", "states", "s", title="With one fence taken out")
    for fence, one in found:
        is_needed = one.broken == fence.breaks
        table.add_row(
            fence.what,
            one.broken if one.broken and is_needed else f"{one.broken or 'nothing'}, NOT {fence.breaks}",
            str(len(one.steps)),
            f"{one.states:,}",
            f"{one.seconds:.0f}",
        )
        if steps:
            console.print(f"{fence.name} breaks {one.broken}:", *one.steps, sep="\n  ")
    console.print(table)
    return all(one.broken == fence.breaks for fence, one in found)


if __name__ == "__main__":
    sys.exit(main())
