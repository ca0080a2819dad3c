"""Checking a password always costs as much as the current settings say."""

from __future__ import annotations

import time

import pytest
from argon2 import PasswordHasher

from webapp.accounts import hash_cost

SET_NOW = PasswordHasher(time_cost=2, memory_cost=8192, parallelism=1)

UNREADABLE = [
    "",
    "h\xe4sh",
    "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
    "pbkdf2:sha256:600000$salt$digest",
    "$argon2id$v=19$m=8192,t=2,p=1$c29tZXNhbHQ",
    "$argon2id$v=19$m=8192,t=2,p=1$$",
    "$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHRzYWx0$AAAAAAAAAAAAAAAAAAAAAA",
    "$argon2id$v=19$m=x,t=2,p=1$c29tZXNhbHQ$AAAA",
    "\0",
]


def check(kept: str | None) -> bool | None:
    """Return the answer, or None for a hash that cannot be read."""
    try:
        return hash_cost.verify(SET_NOW, kept, "a password")
    except hash_cost.HashUnreadable:
        return None


@pytest.mark.parametrize("kept", UNREADABLE)
def test_what_argon2_cannot_read_is_told_apart_from_a_wrong_password(kept: str) -> None:
    assert check(kept) is None


def test_a_hash_is_checked_whatever_its_parameters_are() -> None:
    for passes, memory, lanes in ((1, 8, 1), (2, 8192, 1), (3, 16384, 2)):
        hasher = PasswordHasher(time_cost=passes, memory_cost=memory, parallelism=lanes)
        assert check(hasher.hash("a password")) is True
        assert check(hasher.hash("another")) is False
    assert check(None) is False


def test_every_check_costs_what_is_set_now_at_least() -> None:
    """Measured in CPU time. A noisy neighbor can spoil one comparison; a bug would spoil all of them."""
    compared = []
    for _ in range(8):
        hash_cost._missing.cache_clear()
        compared.append(quickest_checks())
        if max(compared[-1].values()) / min(compared[-1].values()) < 1.3:
            return
    pytest.fail(f"some checks are quicker than others: {compared}")


def quickest_checks() -> dict[str, float]:
    kept = {
        "none": None,
        "set now": SET_NOW.hash("another"),
        "least": PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("another"),
        "half": PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("another"),
        "less memory": PasswordHasher(time_cost=3, memory_cost=2048, parallelism=1).hash("another"),
        "unreadable": "garbage",
    }
    took: dict[str, list[float]] = {name: [] for name in kept}
    for number in range(16):
        for name, one in kept.items():
            begun = time.thread_time()
            check(one)
            # The first run measures how much is missing.
            if number:
                took[name].append(time.thread_time() - begun)
    return {name: min(times) for name, times in took.items()}
