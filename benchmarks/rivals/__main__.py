"""`python -m benchmarks.rivals with_rq 1 100`: queue the job for these users, as a web server would."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    module, first, last = sys.argv[1:]
    rival = import_module(f"benchmarks.rivals.{module}")
    for user_id in range(int(first), int(last) + 1):
        rival.enqueue(user_id)


if __name__ == "__main__":
    main()
