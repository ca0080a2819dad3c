"""Passwords: which are too easy to guess, and how they are hashed."""

from __future__ import annotations

import math
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from argon2 import PasswordHasher
from flask import Flask, current_app
from zxcvbn_rs_py import zxcvbn

from webapp.accounts import hash_cost

MAX_LENGTH = 128

# On zxcvbn's scale: scores 0 and 1 fall to a million guesses.
WEAK_SCORE = 1

# How much of a password is judged: 24 characters that are hard to guess are enough. zxcvbn analyzes the text again for
# each combination of letters that its digits and symbols may stand for. With many combinations it gets fewer
# characters, for example 16 if there are 16 combinations; never fewer than eight.
GUESSED_LENGTH = 24
GUESSED_WORK = 4096

# The symbols that zxcvbn takes for each letter that has more than one.
SYMBOLS = {"a": "4@", "c": "({[<", "g": "69", "i": "1!|", "l": "1|7", "s": "$5", "t": "+7"}

# argon2 takes memory in KiB.
MEBIBYTE = 1024

CORES = os.cpu_count() or 1


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
    guessed = zxcvbn(_beginning(normalize(password)), [word for word in words if word])
    score, said = int(guessed.score), guessed.feedback
    if score > WEAK_SCORE or said is None:
        return Strength(score, [])
    return Strength(score, [str(sentence) for sentence in (said.warning, *said.suggestions) if sentence is not None])


def _beginning(password: str) -> str:
    """Return as many of a password's first characters as zxcvbn can judge quickly."""
    judged = password[:GUESSED_LENGTH]
    while _readings(judged) * len(judged) ** 2 > GUESSED_WORK:
        judged = judged[:-1]
    return judged


def _readings(text: str) -> int:
    """Return how many combinations of letters a text's symbols may stand for, at most: zxcvbn analyzes each."""
    return math.prod(max(1, sum(sign in text for sign in signs)) for signs in SYMBOLS.values())


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
