"""Faults inside a process: Python imports this on its own if this folder is in PYTHONPATH."""

import os

import wrong_clock  # noqa: F401 - it sets the clock

if "CHAOS_FREEZE" in os.environ:
    # After the clock, so that everything imported from here on gets the wrong one.
    import freezing  # noqa: F401 - it listens

if "CHAOS_DAY" in os.environ:
    import short_days  # noqa: F401 - it shortens days
