"""Checking a password at the cost that is set now, whatever its stored hash costs."""

from __future__ import annotations

import base64
import os
import time
from contextlib import suppress
from functools import lru_cache

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, VerifyMismatchError

# argon2's minimum memory per lane, in KiB.
LANE_MEMORY = 8


class HashUnreadable(Exception):
    """The stored hash is not one that argon2 can read."""


def verify(hasher: PasswordHasher, kept: str | None, password: str) -> bool:
    """Return whether `kept` is this password's hash. Raises HashUnreadable.

    Takes as long as the hasher's own hashes: if the stored one is cheaper, unreadable or missing, a dummy makes up the
    difference. A more expensive one takes longer, which cannot be helped.
    """
    if kept is None:
        _check(hasher, _dummy(hasher.memory_cost, hasher.time_cost, hasher.parallelism), password)
        return False
    try:
        spent = extract_parameters(kept)
        is_right = _check(hasher, kept, password)
    # Not ASCII, of another algorithm, truncated, or needing more than this machine has.
    except (Argon2Error, ValueError) as error:
        verify(hasher, None, password)
        raise HashUnreadable from error
    if memory := _missing(hasher, spent.memory_cost, spent.time_cost, spent.parallelism):
        _check(hasher, _dummy(memory, hasher.time_cost, hasher.parallelism), password)
    return is_right


@lru_cache
def _missing(hasher: PasswordHasher, memory: int, passes: int, lanes: int) -> int:
    """Return the memory of a dummy hash that takes the time by which such a stored hash is too fast; 0 for none.

    Measured once per kind of old hash, not computed: memory that fits into a cache takes half the time.
    """
    if (memory, passes, lanes) == (hasher.memory_cost, hasher.time_cost, hasher.parallelism):
        return 0
    set_now = _seconds(hasher, hasher.memory_cost, hasher.time_cost, hasher.parallelism)
    missing = set_now - _seconds(hasher, memory, passes, lanes)
    guess = _whole(hasher, hasher.memory_cost * missing / set_now)
    took = _seconds(hasher, guess, hasher.time_cost, hasher.parallelism) if guess else 0
    return _whole(hasher, guess * missing / took) if took else 0


def _whole(hasher: PasswordHasher, memory: float) -> int:
    """Return an amount of memory that a hash can have, or 0."""
    return round(memory) if memory >= LANE_MEMORY * hasher.parallelism else 0


def _seconds(hasher: PasswordHasher, memory: int, passes: int, lanes: int) -> float:
    # This thread's CPU time, which other load does not change, unless the hash uses more threads.
    clock = time.thread_time if lanes == hasher.parallelism == 1 else time.perf_counter
    took = []
    for _ in range(5):
        begun = clock()
        _check(hasher, _dummy(memory, passes, lanes), "")
        took.append(clock() - begun)
    return min(took)


def _check(hasher: PasswordHasher, kept: str, password: str) -> bool:
    with suppress(VerifyMismatchError):
        return hasher.verify(kept, password)
    return False


def _dummy(memory: int, passes: int, lanes: int) -> str:
    """Return a hash that no password matches: checking against it only takes time."""
    return f"$argon2id$v=19$m={memory},t={passes},p={lanes}${SALT}${DIGEST}"


def _random(size: int) -> str:
    return base64.b64encode(os.urandom(size)).rstrip(b"=").decode()


SALT, DIGEST = _random(16), _random(32)
