"""The model of the outbox: its properties hold, each of its fences is needed, and its steps match the code."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.model.__main__ import AT_ONCE, ENDS, FENCES, MODEL, PROPERTIES, QUICK, missing, search
from tests.test_docs import NAMED, names_in
from webapp.paths import ROOT

# Parts that steps share, not steps.
PARTS = {"rest", "release", "unlock", "excuse_holder", "fall_behind", "age_mail", "age_worker"}

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


def test_each_step_of_the_model_stands_beside_what_does_it() -> None:
    model, page = MODEL.read_text("utf-8"), (ROOT / "docs" / "one-mail.md").read_text("utf-8")
    steps = [step for step in re.findall(r"^inline (\w+)", model, re.MULTILINE) if step not in PARTS]
    told = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page.partition("| step |")[2], re.MULTILINE))
    assert list(told) == steps
    # Faults and acts have no function in our code.
    ours = steps[: steps.index("crash")]
    assert [step for step in ours if not NAMED.search(told[step])] == ["lose_claim", "lose_settle"]
    named = [one for does in told.values() for one in NAMED.findall(does)]
    assert [(path, name) for path, name in named if name not in names_in(path)] == []
