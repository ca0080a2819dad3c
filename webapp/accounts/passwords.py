"""Passwords: what is too easy to guess, and how they are kept."""

from __future__ import annotations

import os
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from argon2 import PasswordHasher
from flask import Flask, current_app

from webapp.accounts import hash_cost

MAX_LENGTH = 128

# zxcvbn's scale: 0 and 1 fall to ten million guesses.
WEAK_SCORE = 1

# How much of a password is judged: 24 characters that are hard to guess are enough. zxcvbn reads every part of them
# anew for each choice of letters that digits and signs may stand for; where there are many choices it gets fewer
# characters: 16 of them may be read in 16 ways. At the least seven are left. The meter in forms.js does the same.
GUESSED_LENGTH = 24
GUESSED_WORK = 4096

# argon2 counts memory in kibibytes.
MEBIBYTE = 1024

CORES = os.cpu_count() or 1

# zxcvbn keeps the words of whom it guesses for where all threads look for theirs. Nobody waits long: each takes
# milliseconds, and only one thread at a time has the interpreter anyway.
guessing = threading.Lock()


def init_app(app: Flask) -> None:
    # More hashes at once than cores are no faster, and each takes its memory. In threads of their own: the C library
    # keeps what a thread hashed in, and would for each thread of the web.
    at_once = max(1, CORES // app.config["WEB_CONCURRENCY"])
    app.extensions["hashing"] = ThreadPoolExecutor(at_once, thread_name_prefix="hash")


class TooLong(ValueError):
    """A password of more characters than any may have."""


def weakness(password: str, words: list[str]) -> list[str]:
    """Return why this password is easy to guess, in English sentences, or nothing; `words` are the person's own.

    Raises TooLong.
    """
    from zxcvbn import zxcvbn  # noqa: PLC0415 - its words take 15 MB, which workers have no use for

    judged = _beginning(normalize(password))
    with guessing:
        result = zxcvbn(judged, user_inputs=[word for word in words if word])
    if result["score"] > WEAK_SCORE:
        return []
    return [sentence for sentence in (result["feedback"]["warning"], *result["feedback"]["suggestions"]) if sentence]


def _beginning(password: str) -> str:
    """Return as many of a password's first characters as can be judged quickly."""
    judged = password[:GUESSED_LENGTH]
    while _readings(judged) * len(judged) ** 2 > GUESSED_WORK:
        judged = judged[:-1]
    return judged


def _readings(text: str) -> int:
    """Return how often zxcvbn at most reads a text anew: for each choice of letters that its signs may stand for."""
    from zxcvbn.matching import L33T_TABLE  # noqa: PLC0415 - as above

    seen: set[str] = set()
    readings = 1
    for signs in L33T_TABLE.values():
        found = [sign for sign in signs if sign in text]
        # One that stands for another letter already does so in some choices, and for this one in others.
        readings *= sum(2 if sign in seen else 1 for sign in found) or 1
        seen.update(found)
    return readings


def hash(password: str) -> str:  # noqa: A001 - read as passwords.hash
    """Raises TooLong."""
    return _hashing().submit(hasher().hash, normalize(password)).result()


def verify(kept: str | None, password: str) -> bool:
    """Return whether `kept` is this password's hash; without one it takes as long to say no.

    Raises hash_cost.HashUnreadable, which takes as long too.
    """
    if len(password) > MAX_LENGTH:
        kept, password = None, ""
    return _hashing().submit(hash_cost.verify, hasher(), kept, normalize(password)).result()


def is_outdated(kept: str) -> bool:
    """Return whether a hash was made with other parameters than the settings say now."""
    return hasher().check_needs_rehash(kept)


def hasher() -> PasswordHasher:
    config = current_app.config
    return _hasher(config["PASSWORD_HASH_MEMORY"], config["PASSWORD_HASH_PASSES"], config["PASSWORD_HASH_LANES"])


def normalize(password: str) -> str:
    """NFKC, so that the same keys pressed on another keyboard or system are the same password. Raises TooLong."""
    if len(password) > MAX_LENGTH:
        # A long row of accents takes seconds.
        raise TooLong
    return unicodedata.normalize("NFKC", password)


@cache
def _hasher(memory: int, passes: int, lanes: int) -> PasswordHasher:
    return PasswordHasher(memory_cost=memory * MEBIBYTE, time_cost=passes, parallelism=lanes)


def _hashing() -> ThreadPoolExecutor:
    pool: ThreadPoolExecutor = current_app.extensions["hashing"]
    return pool
