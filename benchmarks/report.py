"""The results as Markdown: on the terminal and in a file, while the benchmarks run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Cell = str | float


class Report:
    """`file`: where the report is also written."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.lines: list[str] = []

    def heading(self, text: str) -> None:
        self.say("", f"## {text}", "")

    def say(self, *lines: str) -> None:
        for line in lines:
            print(line, flush=True)
        self.lines += lines
        if self.file is not None:
            self.file.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """The first column is text, the others are numbers."""
        cells = [list(header), *[[cell(value) for value in row] for row in rows]]
        widths = [max(len(row[n]) for row in cells) for n in range(len(header))]
        lines = [
            "| " + " | ".join(text.ljust(widths[n]) if n == 0 else text.rjust(widths[n]) for n, text in enumerate(row))
            for row in cells
        ]
        rule = "| " + " | ".join("-" * width if n == 0 else "-" * (width - 1) + ":" for n, width in enumerate(widths))
        self.say(*[f"{line} |" for line in [lines[0], rule, *lines[1:]]], "")

    def target(self, what: str, found: float, bound: Literal["at most", "at least"], limit: float) -> None:
        """Say whether a figure is within its bound, or by how much it falls short."""
        excess = found - limit if bound == "at most" else limit - found
        if excess <= 0:
            self.say(f"- holds: {what}: {cell(found)}, {bound} {cell(limit)}")
        else:
            short = f" ({100 * excess / limit:.0f} % off)" if limit else ""
            self.say(f"- **falls short**: {what}: {cell(found)}, wanted {bound} {cell(limit)}{short}")


def cell(value: Cell) -> str:
    if isinstance(value, str):
        return value
    magnitude = abs(value)
    if magnitude and magnitude < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if magnitude < 100 and value != round(value) else f"{value:,.0f}"
