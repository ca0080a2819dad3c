"""The parts that tests stand on."""

from __future__ import annotations

import signal
import sys

import pytest

from harness.processes import Process, consumer, wait_until


def test_however_often_a_process_is_read_all_that_it_said_is_there() -> None:
    count = 5000
    with Process(sys.executable, "-uc", f"for n in range({count}): print(n)", environ={}) as process:
        while process.popen.poll() is None:
            assert process.log.count("\n") <= count
        assert process.log.splitlines() == [str(n) for n in range(count)]


def test_a_line_that_is_still_being_written_is_no_event_yet() -> None:
    said = '{"event": "one"}\n{"event": "tw'
    code = f"import time; print({said!r}, end='', flush=True); time.sleep(600)"
    with Process(sys.executable, "-c", code, environ={}) as process:
        wait_until(lambda: "tw" in process.log, "it said nothing")
        assert process.events("one") == [{"event": "one"}]


# Whatever its database.
@pytest.mark.parametrize("backend", ["embedded"], indirect=True)
def test_a_process_can_be_killed_as_soon_as_it_was_started(process_environ: dict[str, str]) -> None:
    for _ in range(20):
        with consumer(process_environ) as process:
            process.kill()
        assert process.popen.returncode == -signal.SIGKILL
