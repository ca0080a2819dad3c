"""`python -m chaos`: break everything under load, heal it, and check that no email was lost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chaos import checks, faults, report, runs
from chaos.load import Load
from chaos.world import NAIVE, OURS, App, Embedded, Servers, world

RATE = 8.0
# From when everything is healed until the last email is sent.
PATIENCE = 90.0
LONGEST = 300.0
# If a naive queue did nothing for this long, it has nothing left to do.
NAIVE_PATIENCE = 30.0


def main() -> int:
    """Return 1 if a promise was broken."""
    arguments = parse()
    app = NAIVE if arguments.naive else OURS
    return int(runs.in_folder("chaos-", lambda folder: run(arguments, app, folder), keep=arguments.keep))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same faults")
    parser.add_argument("--seconds", type=float, default=60, help="how long things go wrong")
    parser.add_argument("--consumers", type=int, help="3 on servers, 2 on embedded")
    parser.add_argument("--backend", choices=[Servers.name, Embedded.name], default=Servers.name)
    parser.add_argument("--naive", action="store_true", help="the same against commit-then-schedule, to compare")
    runs.add_keep(parser)
    arguments = parser.parse_args()
    arguments.consumers = arguments.consumers or (3 if arguments.backend == Servers.name else 2)
    return arguments


def run(arguments: argparse.Namespace, app: App, folder: Path) -> bool:
    """Return whether our app broke a promise; the naive app makes none."""
    planned = faults.schedule(
        arguments.seed, arguments.seconds, arguments.consumers, arguments.backend, is_ours=app is OURS
    )
    print(
        f"{app.name} on {arguments.backend}, {arguments.consumers} consumers, seed {arguments.seed}: "
        f"{len(planned)} faults in {arguments.seconds:.0f} s, {RATE:.0f} signups a second",
        flush=True,
    )
    with world(app, arguments.backend, folder, arguments.consumers) as parts:
        load = Load(parts.url, rate=RATE)
        load.start()
        happened = faults.play(parts, planned, arguments.seconds, lambda line: print(line, flush=True))
        load.stop()
        parts.mend()
        print("healed", flush=True)
        healed_in = checks.settle_down(parts, PATIENCE if app is OURS else NAIVE_PATIENCE, LONGEST)
        result = checks.reckon(parts, load.acknowledged)
        checks.watch_neighbours(happened, result)
        report.figures(parts, load, result, healed_in)
        report.table(happened, result)
        if app is not OURS:
            return False
        limit = report.duplicates(parts, happened, result)
        report.events(folder)
        broken = report.breaches(parts, result, limit)
        for name, addresses in broken.items():
            report.evidence(name, addresses, result, folder)
    print("\n" + ("BROKEN: " + ", ".join(broken) if broken else "no promise was broken"))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
