"""How commands print: tables on a terminal, lines that other programs can cut in a pipe, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from webapp.db.base import db
from webapp.monitoring.formatting import plain

# So much of an id tells mails apart, where lines are short.
ID_DIGITS = 8


def picked(row: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


def print_json(value: object) -> None:
    write(json.dumps(value, indent=2, default=plain))


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("nothing to list", err=True)
    elif sys.stdout.isatty():
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(short(name, value) for name, value in row.items()))
        print_table(table)
    else:
        write("\n".join("\t".join(line) for line in [[*rows[0]], *([plain(v) for v in row.values()] for row in rows)]))


def print_fields(fields: Mapping[str, Any]) -> None:
    if sys.stdout.isatty():
        table = Table(show_header=False)
        for name, value in fields.items():
            table.add_row(name, plain(value))
        print_table(table)
    else:
        write("\n".join(f"{name}\t{plain(value)}" for name, value in fields.items()))


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far long work is; call what is yielded with how much was done."""
    # On stderr: what the command prints is for others to read.
    with Progress(console=Console(stderr=True), disable=not sys.stdout.isatty(), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


def print_table(table: Table) -> None:
    # What a mail server said must not be taken for markup.
    console = Console(markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(table)
    write(capture.get().rstrip("\n"))


def write(text: str) -> None:
    # A pager may keep us waiting for hours, and must not keep SQLite's writers waiting with us.
    db.session.rollback()
    click.echo(text)


def short(name: str, value: object) -> str:
    return plain(value)[:ID_DIGITS] if name == "id" else plain(value)
