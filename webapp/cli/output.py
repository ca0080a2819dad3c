"""How commands print: tables on a terminal, tab-separated lines in a pipe, JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from webapp.db.base import db
from webapp.monitoring.formatting import ago, plain

# This much of an id tells emails apart where lines are short.
ID_DIGITS = 8
GAP = 2

# By the row's state; the word is printed too, for people who don't see colors.
STYLES = {
    **dict.fromkeys(("sent", "verified", "alive", "up"), "green"),
    **dict.fromkeys(("queued", "sending", "held", "pending"), "cyan"),
    **dict.fromkeys(("deferred", "returned", "lease_expired"), "yellow"),
    **dict.fromkeys(("dead", "failed", "locked", "gone", "down"), "bold red"),
    **dict.fromkeys(("canceled", "legacy"), "dim"),
}
STATES = ("status", "state", "outcome", "mail server")

wide_option = click.option("--wide", is_flag=True, help="Print every column in full, even on a terminal.")


def picked(row: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def print_json(value: object) -> None:
    write(json.dumps(value, indent=2, default=plain))


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    brief: Sequence[Mapping[str, Any]] | None = None,
    as_json: bool = False,
    wide: bool = False,
) -> None:
    """Print rows; on a terminal print `brief` instead, cut to its width, unless `wide`."""
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("nothing to list", err=True)
    elif sys.stdout.isatty():
        print_table(
            [[Text(name, "dim") for name in rows[0]], *map(_in_full, rows)] if wide else _fitting(brief or rows)
        )
    else:
        write("\n".join("\t".join(line) for line in [[*rows[0]], *([plain(v) for v in row.values()] for row in rows)]))


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print a line for each field that has a value."""
    known = {name: value for name, value in fields.items() if value not in {None, ""}}
    if sys.stdout.isatty():
        print_table([[Text(name, "dim"), _exact(name, value)] for name, value in known.items()])
    else:
        write("\n".join(f"{name}\t{plain(value)}" for name, value in known.items()))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of long work on a terminal; call the yielded function with how much was done."""
    # On stderr: stdout is for the command's output.
    with Progress(console=Console(stderr=True), disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


def _fitting(rows: Sequence[Mapping[str, Any]]) -> list[list[Text]]:
    """Return a line for the names and one for each row, none wider than the terminal."""
    lines = [[Text(name, "dim") for name in rows[0]]]
    lines += [[_short(name, value) for name, value in row.items()] for row in rows]
    widths = _widths(lines)
    room = Console().width - GAP * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 1:
        # Ids, states and times are never the widest.
        widths[widths.index(max(widths))] -= 1
    for line in lines:
        for cell, width in zip(line, widths, strict=True):
            cell.truncate(width, overflow="ellipsis")
    return lines


def _in_full(row: Mapping[str, Any]) -> list[Text]:
    return [Text(plain(value), _style(name, value)) for name, value in row.items()]


def _short(name: str, value: object) -> Text:
    if isinstance(value, datetime):
        return Text(ago(value))
    # A mail server's text may have several lines.
    text = " ".join(plain(value).split())
    return Text(text[:ID_DIGITS] if name == "id" else text, _style(name, value))


def _exact(name: str, value: object) -> Text:
    return Text(f"{plain(value)} ({ago(value)})" if isinstance(value, datetime) else plain(value), _style(name, value))


def _style(name: str, value: object) -> str:
    return STYLES.get(str(value).partition(" ")[0], "") if name in STATES else ""


def print_table(lines: Sequence[Sequence[Text]]) -> None:
    """Print lines in columns; the terminal wraps the ones that are too wide."""
    # What a mail server said must not be taken for markup.
    console = Console(markup=False, emoji=False, highlight=False)
    widths = _widths(lines)
    with console.capture() as capture:
        for line in lines:
            for cell, width in zip(line, widths, strict=True):
                cell.pad_right(width - cell.cell_len)
            whole = Text(" " * GAP).join(line)
            whole.rstrip()
            console.print(whole, soft_wrap=True)
    write(capture.get().rstrip("\n"))


def _widths(lines: Sequence[Sequence[Text]]) -> list[int]:
    return [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]


def write(text: str) -> None:
    # A pager may keep us waiting for hours, and must not keep SQLite's writers waiting with us.
    db.session.rollback()
    click.echo(text)
