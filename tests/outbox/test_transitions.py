"""Where the status of an email may change."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from webapp.paths import ROOT

# In order: emails that nobody holds, claims, outcomes, and emails taken back.
WRITERS = {"transitions.py", "claims.py", "outcomes.py", "reaper.py"}


def test_the_state_of_an_email_changes_in_one_place() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}"
        for file in (ROOT / "webapp").rglob("*.py")
        if file.parent.name != "outbox" or file.name not in WRITERS
        for line in writes(file)
    }
    assert found == set()


def writes(file: Path) -> Iterator[int]:
    """Yield the lines on which a status is set: by values(), as a keyword or in a dict, or as an attribute."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
            constants = [part for given in node.args for part in ast.walk(given) if isinstance(part, ast.Constant)]
            if "status" in [*(keyword.arg for keyword in node.keywords), *(part.value for part in constants)]:
                yield node.lineno
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (part.lineno for part in targets if isinstance(part, ast.Attribute) and part.attr == "status")
