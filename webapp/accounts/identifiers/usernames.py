"""Usernames: how they are written, which are the same, and which look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

LONGEST = 64
KEY_MAX = 256

# The limit before normalizing, which takes seconds for a long run of accents.
RAW_MAX = 4 * LONGEST

CONFUSABLES = Path(__file__).with_name("confusables.txt")

# Unicode's Default_Ignorable_Code_Point: these are invisible, though some are letters.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


class UsernameInvalid(ValueError):
    """Not a username; `reason` is "length", "characters", "empty" or "reserved"."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def normalize(text: str) -> str:
    """Return the username as it is shown, or raise UsernameInvalid."""
    if len(text) > RAW_MAX:
        raise UsernameInvalid("length")
    name = unicodedata.normalize("NFKC", text.strip())
    if not name or len(name) > LONGEST:
        raise UsernameInvalid("length")
    kinds = [unicodedata.category(char)[0] for char in name]
    # Marks too, since Thai and Hindi vowels are marks; but not first, where one would attach to the text before it.
    if kinds[0] == "M" or not all(kind in "LMN" or char in "._-" for kind, char in zip(kinds, name, strict=True)):
        raise UsernameInvalid("characters")
    if INVISIBLE.search(name):
        raise UsernameInvalid("characters")
    if not {"L", "N"} & set(kinds):
        raise UsernameInvalid("empty")
    return name


def choose(text: str, reserved: Iterable[str]) -> str:
    """Return a newly chosen username as it is shown. Raises UsernameInvalid, also if it looks like a reserved one."""
    name = normalize(text)
    if skeleton(name) in _skeletons(tuple(reserved)):
        raise UsernameInvalid("reserved")
    return name


def key(username: str) -> str:
    """Return the key that all spellings of a username share."""
    folded = unicodedata.normalize("NFKC", username.strip()[:RAW_MAX]).casefold()
    # A single character may expand to a dozen, and old code accepted names made of those.
    return unicodedata.normalize("NFKC", folded)[:KEY_MAX]


def skeleton(username: str) -> str:
    """Return the skeleton that usernames share if they look alike, by UTS 39, ignoring case."""
    name = unicodedata.normalize("NFKC", username.strip()[:RAW_MAX])
    # Twice: a capital letter looks like other letters than its small one does.
    shape = _shape(_shape(INVISIBLE.sub("", name)).casefold())
    # A capital I looks like an l, but is an i.
    return shape.replace("i", "l")[:KEY_MAX] or key(username)


def _shape(text: str) -> str:
    shape = "".join(_prototypes().get(char, char) for char in unicodedata.normalize("NFD", text))
    return unicodedata.normalize("NFD", shape)


@cache
def _skeletons(usernames: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(skeleton, usernames))


@cache
def _prototypes() -> dict[str, str]:
    """Return the prototype of each character that looks like others."""
    lines = CONFUSABLES.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(";") for line in lines if not line.startswith("#")]
    return {chr(int(char, 16)): "".join(chr(int(code, 16)) for code in shape.split()) for char, shape in pairs}
