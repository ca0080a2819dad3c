"""What goes wrong inside a process: Python imports this by itself where PYTHONPATH names this folder."""

import os

import wrong_clock  # noqa: F401 - it sets the clock

if "CHAOS_FREEZE" in os.environ:
    # After the clock: whatever is imported from here on gets the wrong one.
    import freezing  # noqa: F401 - it listens
