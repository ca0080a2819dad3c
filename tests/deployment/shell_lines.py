"""Commands in documents: taken from fences and from `ticks`, and split as a shell would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Iterator
from pathlib import Path

from webapp.paths import ROOT

FENCE = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ANY_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
TICKS = re.compile(r"`([^`\n]+)`")
ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)
SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")


def lines_of(document: str, programs: Container[str]) -> list[str]:
    """Return each command line: from shell fences, and from ticks that begin with one of these programs."""
    text = (ROOT / document).read_text("utf-8")
    found = []
    for fence in FENCE.finditer(text):
        lines = fence[2].replace("\\\n", " ").splitlines()
        found += [(fence.start(), line.strip()) for line in lines if line.strip()]
    prose = ANY_FENCE.sub(lambda fence: " " * len(fence[0]), text)
    found += [(ticks.start(), ticks[1]) for ticks in TICKS.finditer(prose) if program_of(ticks[1]) in programs]
    return [line for _, line in sorted(found, key=lambda one: one[0])]


def program_of(text: str) -> str:
    words = [word for word in text.split() if not ASSIGNMENT.fullmatch(word)]
    # Examples are read, not run.
    return Path(words[0]).name if words and not words[0].startswith("examples/") else ""


def commands_in(line: str) -> Iterator[list[str]]:
    """Yield the words of each program that a shell would run, one after the other."""
    for inner in SUBSTITUTION.findall(line):
        yield from commands_in(inner)
    lexer = shlex.shlex(SUBSTITUTION.sub("SUBSTITUTED", line), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    is_file = False
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()"):
            if words:
                yield words
            words = []
        elif set(word) <= set("<>"):
            is_file = True
        elif is_file:
            is_file = False
        elif words or not ASSIGNMENT.fullmatch(word):
            words.append(word)
