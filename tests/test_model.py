"""The model of the outbox: its properties hold, and each of its fences is needed."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.model.__main__ import AT_ONCE, ENDS, FENCES, MODEL, PROPERTIES, QUICK, missing, search

needs_spin = pytest.mark.skipif(
    bool(missing()) and os.environ.get("CI") != "true", reason="needs spin and gcc: apt install spin gcc"
)


@needs_spin
@pytest.mark.timeout(600)
def test_every_property_holds_in_every_state_that_can_be_reached() -> None:
    assert (search(QUICK[0]).broken, search(QUICK[0], for_cycles=True).broken) == (None, None)


@needs_spin
@pytest.mark.timeout(600)
def test_without_any_of_its_fences_a_property_breaks() -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(lambda fence: search(fence.bounds, fence.name), FENCES))
    assert [one.broken for one in found] == [fence.breaks for fence in FENCES]
    assert all(one.steps for one in found)


def test_each_fence_of_the_model_is_taken_out_once() -> None:
    assert sorted(fence.name for fence in FENCES) == sorted(set(re.findall(r"NO_\w+_FENCE", MODEL.read_text("utf-8"))))


def test_each_property_of_the_model_is_told() -> None:
    told = set(re.findall(r'must\("([^"]+)"', MODEL.read_text("utf-8")))
    assert (told, ENDS in told) == (set(PROPERTIES), False)
