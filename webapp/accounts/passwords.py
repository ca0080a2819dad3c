"""Passwords: which are too easy to guess, and how they are hashed."""

from __future__ import annotations

import os
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from argon2 import PasswordHasher
from flask import Flask, current_app

from webapp.accounts import hash_cost

MAX_LENGTH = 128

# On zxcvbn's scale: scores 0 and 1 fall to a million guesses.
WEAK_SCORE = 1

# How much of a password is judged: 24 characters that are hard to guess are enough. zxcvbn analyzes the text again for
# each combination of letters that its digits and symbols may stand for. With many combinations it gets fewer
# characters, for example 16 if there are 16 combinations; never fewer than seven.
GUESSED_LENGTH = 24
GUESSED_WORK = 4096

# argon2 takes memory in KiB.
MEBIBYTE = 1024

CORES = os.cpu_count() or 1

# zxcvbn keeps the user's words in a global that all threads share. Nobody waits long for this lock: a call takes
# milliseconds, and only one thread at a time runs Python anyway.
guessing = threading.Lock()


def init_app(app: Flask) -> None:
    # More hashes at once than cores are no faster, and each takes memory. They have threads of their own because the
    # C library keeps the memory that a thread hashed in, and would do so for every web thread.
    at_once = max(1, CORES // app.config["WEB_CONCURRENCY"])
    app.extensions["hashing"] = ThreadPoolExecutor(at_once, thread_name_prefix="hash")


class TooLong(ValueError):
    """A password of more than MAX_LENGTH characters."""


class Strength(NamedTuple):
    """How hard a password is to guess, from 0 to 4; English sentences say why it is too easy, if it is."""

    score: int
    reasons: list[str]


def weakness(password: str, words: list[str]) -> list[str]:
    """Return why this password is too easy to guess, as in strength()."""
    return strength(password, words).reasons


def strength(password: str, words: list[str]) -> Strength:
    """Judge a password; `words` are the person's names and address. Raises TooLong."""
    from zxcvbn import zxcvbn  # noqa: PLC0415 - its dictionaries take 15 MB, which workers do not need

    judged = _beginning(normalize(password))
    with guessing:
        result = zxcvbn(judged, user_inputs=[word for word in words if word])
    said = (result["feedback"]["warning"], *result["feedback"]["suggestions"])
    is_weak = result["score"] <= WEAK_SCORE
    return Strength(result["score"], [sentence for sentence in said if sentence] if is_weak else [])


def _beginning(password: str) -> str:
    """Return as many of a password's first characters as zxcvbn can judge quickly."""
    judged = password[:GUESSED_LENGTH]
    while _readings(judged) * len(judged) ** 2 > GUESSED_WORK:
        judged = judged[:-1]
    return judged


def _readings(text: str) -> int:
    """Return how many combinations of letters a text's symbols may stand for, at most: zxcvbn analyzes each."""
    from zxcvbn.matching import L33T_TABLE  # noqa: PLC0415 - as above

    seen: set[str] = set()
    readings = 1
    for signs in L33T_TABLE.values():
        found = [sign for sign in signs if sign in text]
        # A symbol that may also stand for an earlier letter doubles: it stands for that one or for this one.
        readings *= sum(2 if sign in seen else 1 for sign in found) or 1
        seen.update(found)
    return readings


def hash(password: str) -> str:  # noqa: A001 - read as passwords.hash
    """Raises TooLong."""
    return _hashing().submit(hasher().hash, normalize(password)).result()


def verify(kept: str | None, password: str) -> bool:
    """Return whether `kept` is this password's hash; without a hash, it takes as long to say no.

    Raises hash_cost.HashUnreadable, after the same time.
    """
    if len(password) > MAX_LENGTH:
        kept, password = None, ""
    return _hashing().submit(hash_cost.verify, hasher(), kept, normalize(password)).result()


def is_outdated(kept: str) -> bool:
    """Return whether a hash was made with other parameters than the current settings."""
    return hasher().check_needs_rehash(kept)


def hasher() -> PasswordHasher:
    config = current_app.config
    return _hasher(config["PASSWORD_HASH_MEMORY"], config["PASSWORD_HASH_PASSES"], config["PASSWORD_HASH_LANES"])


def normalize(password: str) -> str:
    """Normalize to NFKC, so that a password typed on another keyboard or system stays the same. Raises TooLong."""
    if len(password) > MAX_LENGTH:
        # A long run of accents takes seconds.
        raise TooLong
    return unicodedata.normalize("NFKC", password)


@cache
def _hasher(memory: int, passes: int, lanes: int) -> PasswordHasher:
    return PasswordHasher(memory_cost=memory * MEBIBYTE, time_cost=passes, parallelism=lanes)


def _hashing() -> ThreadPoolExecutor:
    pool: ThreadPoolExecutor = current_app.extensions["hashing"]
    return pool
