"""The cost of checking a password: as much as is set now, whatever its kept hash costs."""

from __future__ import annotations

import base64
import os
import time
from contextlib import suppress
from functools import lru_cache

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import Argon2Error, VerifyMismatchError

# The least memory that argon2 takes for each lane, in kibibytes.
LANE_MEMORY = 8


class HashUnreadable(Exception):
    """The kept hash is none that argon2 can read."""


def verify(hasher: PasswordHasher, kept: str | None, password: str) -> bool:
    """Return whether `kept` is this password's hash. Raises HashUnreadable.

    In each case it takes as long as the hasher's own hashes do: where the kept one is cheaper, cannot be read or is
    none at all, the difference is spent. One that is dearer takes longer: that cannot be made good.
    """
    if kept is None:
        _check(hasher, _dummy(hasher.memory_cost, hasher.time_cost, hasher.parallelism), password)
        return False
    try:
        spent = extract_parameters(kept)
        is_right = _check(hasher, kept, password)
    # Not ASCII, of another algorithm, cut off, or asking for what this machine does not have.
    except (Argon2Error, ValueError) as error:
        verify(hasher, None, password)
        raise HashUnreadable from error
    if memory := _missing(hasher, spent.memory_cost, spent.time_cost, spent.parallelism):
        _check(hasher, _dummy(memory, hasher.time_cost, hasher.parallelism), password)
    return is_right


@lru_cache
def _missing(hasher: PasswordHasher, memory: int, passes: int, lanes: int) -> int:
    """Return how much memory the hash has that takes as long as such a kept one is too quick; 0 for none.

    Measured, once for each kind of old hash: what fits into a cache takes half the time.
    """
    if (memory, passes, lanes) == (hasher.memory_cost, hasher.time_cost, hasher.parallelism):
        return 0
    set_now = _seconds(hasher, hasher.memory_cost, hasher.time_cost, hasher.parallelism)
    missing = set_now - _seconds(hasher, memory, passes, lanes)
    guess = _whole(hasher, hasher.memory_cost * missing / set_now)
    took = _seconds(hasher, guess, hasher.time_cost, hasher.parallelism) if guess else 0
    return _whole(hasher, guess * missing / took) if took else 0


def _whole(hasher: PasswordHasher, memory: float) -> int:
    """Return memory that a hash can have, or 0."""
    return round(memory) if memory >= LANE_MEMORY * hasher.parallelism else 0


def _seconds(hasher: PasswordHasher, memory: int, passes: int, lanes: int) -> float:
    # What else runs here counts for nothing, unless other threads take part.
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
    """Return the hash of no password: checking one against it only takes its time."""
    return f"$argon2id$v=19$m={memory},t={passes},p={lanes}${SALT}${DIGEST}"


def _random(size: int) -> str:
    return base64.b64encode(os.urandom(size)).rstrip(b"=").decode()


SALT, DIGEST = _random(16), _random(32)
