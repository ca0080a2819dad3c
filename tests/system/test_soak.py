"""`make soak`: a day's load within minutes, and a verdict that can fail."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path

import pytest

from chaos.soak import people, verdict
from chaos.soak.__main__ import COLUMNS, DAY_SECONDS
from chaos.soak.stage import Taken, stage
from chaos.soak.town import Account, Town
from chaos.soak.verdict import Email
from webapp.paths import ROOT


def day(**changed: Sequence[float]) -> list[Mapping[str, float]]:
    """A day of four hours on which nothing grows but what is said to."""
    return [
        dict.fromkeys(verdict.LEVEL, 100.0) | {name: row[hour] for name, row in changed.items()} for hour in range(4)
    ]


@pytest.mark.timeout(300)
def test_a_day_passes_and_keeps_every_promise_about_emails() -> None:
    command = [sys.executable, "-m", "chaos.soak", "--minutes", "0.05", "--rate", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = [line.split() for line in done.stdout.splitlines()]
    hours = [row for row in rows if len(row) == len(COLUMNS) + 1 and row[0].isdigit()]
    assert [int(hour[0]) for hour in hours] == list(range(24)), done.stdout + done.stderr
    # On a busy machine answers may be late, which the verdict tells too.
    assert done.returncode == ("BROKEN" in done.stdout)
    for promise in verdict.of_emails({}, [], []):
        assert f"BROKEN {promise}" not in done.stdout


@pytest.mark.timeout(300)
def test_every_journey_reaches_its_end() -> None:
    with (
        # Not in pytest's own folder: another run would close it to the user that Postgres runs as.
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        stage(Path(folder), DAY_SECONDS) as parts,
        Town(parts.url, parts.mailbox, newcomers=people.NEWCOMERS, members=people.MEMBERS, seed=1) as town,
    ):
        wait([town.send(journey, account(journey.__name__)) for journey in people.NEWCOMERS])
        wait([town.send(people.click, account(journey.__name__)) for journey in people.MEMBERS])
        members = {one.username: one for one in town.accounts}
        wait([town.send(journey, members[journey.__name__], is_member=True) for journey in people.MEMBERS])
    assert town.failures == []


def account(name: str) -> Account:
    return Account(name, f"{name}@town.example")


def test_what_is_as_high_in_the_evening_as_in_the_morning_does_not_grow() -> None:
    assert verdict.growth(day(web=[80, 100, 90, 104], keys=[0, 100, 10, 120])) == []


@pytest.mark.parametrize("figure", verdict.LEVEL)
def test_a_figure_that_grows_all_day_is_told(figure: str) -> None:
    (told,) = verdict.growth(day(**{figure: [100, 200, 300, 400]}))
    assert told == f"{figure}: 200.0 in the morning, 400.0 in the evening"


def test_each_email_that_is_not_accepted_once_or_rightly_ended_is_told() -> None:
    emails = {
        "well": Email("well@example.com", "sent"),
        "lost": Email("lost@example.com", "sent"),
        "late": Email("late@example.com", "queued"),
        "later": Email("later@example.com", "queued", is_for_later=True),
        "dead": Email("dead@example.com", "dead"),
        "twice": Email("twice@example.com", "sent"),
        "refused": Email("refused@example.com", "dead"),
        "canceled": Email("canceled@example.com", "canceled"),
    }
    taken = [Taken(message_id, 0) for message_id in ("well", "twice", "twice", "unknown")]
    acknowledged = ["well@example.com", "forgotten@example.com"]
    found = verdict.of_emails(emails, taken, acknowledged)
    assert {what: [one.split()[0] for one in concerned] for what, concerned in found.items()} == {
        "sent, but not accepted": ["lost"],
        "still on their way": ["late"],
        "wrongly dead": ["dead"],
        "doubled": ["twice"],
        "accepted without being committed": ["unknown"],
        "answered as done, and not committed": ["forgotten@example.com"],
    }


def test_only_a_refused_recipient_may_be_an_error_in_the_log() -> None:
    lines = [
        '{"level": "info", "event": "request"}',
        '{"level": "error", "event": "email_dead", "error": "5.1.1 no such mailbox"}',
        '{"level": "error", "event": "relay_failed"}',
        "Traceback (most recent call last):",
    ]
    assert list(verdict.errors(lines)) == lines[2:]


def test_totals_that_forget_what_was_pruned_are_told() -> None:
    counters = {
        ("signup_delivery_attempts_total", ("outcome", "sent")): 5.0,
        ("signup_time_to_accept_seconds_count",): 4.0,
    }
    assert verdict.of_counters(counters, 5) == ["accepted: 4 counted, 5 accepted"]
