from __future__ import annotations

import subprocess
import sys

from benchmarks.__main__ import SECTIONS
from benchmarks.report import Report
from webapp.paths import ROOT


def test_the_benchmarks_say_which_parts_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in SECTIONS)


def test_a_figure_that_falls_short_is_told_with_how_much() -> None:
    report = Report()
    report.target("CPU a mail", 0.3, "at most", 0.25)
    report.target("mails a second", 4.5, "at least", 4)
    assert report.lines == [
        "- **falls short**: CPU a mail: 0.30, wanted at most 0.25 (20 % off)",
        "- holds: mails a second: 4.5, at least 4",
    ]
