"""Programs in one terminal: what is printed about them, and that they restart when a file changes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from harness.processes import Process, wait_until

# Two programs: one runs the contents of a file, the other waits. Each would outlive its test by far.
RUN = """
import os, sys
from pathlib import Path
from tools.programs import Console, Programs, Watch
folder = Path(sys.argv[1])
commands = {"web": [sys.executable, "web.py"], "worker": [sys.executable, "-c", "import time; time.sleep(600)"]}
print("ended:", Programs(commands, os.environ, folder, Console()).run(Watch(folder)))
"""
WORKS = "import time; print({!r}, flush=True); time.sleep(600)"


@pytest.fixture
def run(tmp_path: Path, system_environ: dict[str, str]) -> Iterator[Process]:
    (tmp_path / "web.py").write_text(WORKS.format("hello"))
    with Process(sys.executable, "-c", RUN, str(tmp_path), environ=system_environ) as process:
        wait_until(lambda: "| hello" in process.log, "no start")
        yield process
        process.stop(30)


def test_all_start_again_when_a_file_changes(run: Process, tmp_path: Path) -> None:
    (tmp_path / "web.py").write_text(WORKS.format("hello again"))
    wait_until(lambda: "| hello again" in run.log, "nothing was started again")
    assert "changed: web.py\n" in run.log
    pids = re.findall(r"^started web \((\d+)\), worker \((\d+)\)$", run.log, re.MULTILINE)
    assert len({pid for both in pids for pid in both}) == 4
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids[0][1]), 0)


def test_a_slip_in_what_was_changed_ends_nothing_for_good(run: Process, tmp_path: Path) -> None:
    (tmp_path / "web.py").write_text("import nothing_like_that")
    wait_until(lambda: "all start again when a file changes" in run.log, "nothing ended")
    assert "No module named 'nothing_like_that'" in run.log
    (tmp_path / "web.py").write_text(WORKS.format("mended"))
    wait_until(lambda: "| mended" in run.log, "nothing was started again")


def test_it_ends_when_one_ended_that_nobody_changed(tmp_path: Path, system_environ: dict[str, str]) -> None:
    (tmp_path / "web.py").write_text("print('last words')")
    with Process(sys.executable, "-c", RUN, str(tmp_path), environ=system_environ) as process:
        assert process.popen.wait(30) == 0
        assert "| last words\n" in process.log
        assert "ended: web" in process.log


@pytest.mark.parametrize(("settings", "has_colors"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colors_unless_it_wants_none(
    settings: dict[str, str], *, has_colors: bool, system_environ: dict[str, str]
) -> None:
    ours, theirs = os.openpty()
    with closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        subprocess.run(
            [sys.executable, "-c", "from tools.programs import Console; Console().tell('web', 'hello')"],
            env={**system_environ, **settings},
            stdout=theirs,
            check=True,
            timeout=60,
        )
        os.close(theirs)
        assert (b"\033[" in screen.read(1000)) == has_colors
