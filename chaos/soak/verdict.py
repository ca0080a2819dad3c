"""The verdict: emails accepted once or rightly ended, counters right, logs clean, and nothing that keeps growing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from chaos.soak.stage import Taken
from chaos.world import is_refused

# The mail server's words about a mailbox that does not exist: errors that quote them are expected.
REFUSAL = "no such mailbox"


@dataclass
class Email:
    """An email as the database showed it last; `why`: the reason if it was refused or canceled.

    `is_for_later`: whether it was promised for a time that has not come, as your own may be.
    """

    address: str
    status: str = ""
    due_at: float = 0
    why: str = ""
    is_for_later: bool = False

    @property
    def is_on_its_way(self) -> bool:
        return self.status in {"queued", "sending"} and not self.is_for_later


@dataclass(frozen=True)
class Tolerance:
    """How much a figure may rise from the morning to the evening: by a share of it, and by this much more."""

    share: float
    more: float


# The load is the same. Memory fragments, and visitors arrive by chance.
LEVEL = {
    "web": Tolerance(0.05, 5),
    "workers": Tolerance(0.05, 5),
    "files": Tolerance(0.1, 5),
    "threads": Tolerance(0.05, 3),
    "connections": Tolerance(0.1, 3),
    "redis": Tolerance(0.1, 1),
    "keys": Tolerance(0.25, 50),
    "emails": Tolerance(0.25, 50),
    "attempts": Tolerance(0.25, 50),
    "events": Tolerance(0.25, 100),
    "sessions": Tolerance(0.25, 50),
    "code tries": Tolerance(0.25, 50),
    "pending users": Tolerance(0.25, 50),
}


def growth(hours: Sequence[Mapping[str, float]]) -> list[str]:
    """Return which figures rose from the second quarter of the day to the last by more than is tolerated."""
    quarter = len(hours) // 4
    found = []
    for name, tolerance in LEVEL.items():
        before = mean(hour[name] for hour in hours[quarter : 2 * quarter])
        after = mean(hour[name] for hour in hours[3 * quarter :])
        if after > before * (1 + tolerance.share) + tolerance.more:
            found.append(f"{name}: {before:.1f} in the morning, {after:.1f} in the evening")
    return found


def of_emails(
    emails: Mapping[str, Email], taken: Sequence[Taken], acknowledged: Iterable[str]
) -> dict[str, Sequence[str]]:
    """Return each promise with what broke it; `acknowledged`: addresses whose signup was answered as done."""
    copies = Counter(one.message_id for one in taken)
    known = {email.address for email in emails.values()}

    def those(status: str) -> list[str]:
        return [message_id for message_id, email in emails.items() if email.status == status]

    return {
        "sent, but not accepted": [one for one in those("sent") if one not in copies],
        "still on their way": [one for one, email in emails.items() if email.is_on_its_way],
        "wrongly dead": [f"{one} {emails[one]}" for one in those("dead") if not is_refused(emails[one].address)],
        "doubled": [one for one, count in copies.items() if count > 1],
        "accepted without being committed": [one for one in copies if one not in emails],
        "answered as done, and not committed": [address for address in acknowledged if address not in known],
    }


def rightly_ended(emails: Mapping[str, Email]) -> Counter[str]:
    """Count the emails that ended without being accepted, by reason."""
    return Counter(email.why for email in emails.values() if email.status in {"dead", "canceled"})


def of_counters(counters: Mapping[Any, float], taken: int) -> list[str]:
    """Return the counters that differ from the number of accepted emails, whose rows may be gone."""
    totals = {
        "attempts": counters.get(("signup_delivery_attempts_total", ("outcome", "sent")), 0),
        "accepted": counters.get(("signup_time_to_accept_seconds_count",), 0),
    }
    return [f"{name}: {total:.0f} counted, {taken} accepted" for name, total in totals.items() if total != taken]


def errors(lines: Iterable[str]) -> Iterator[str]:
    """Yield log lines that tell of an unexpected error, and lines that the app did not format."""
    for line in lines:
        is_ours = line.startswith("{")
        if not is_ours or (json.loads(line).get("level") in {"error", "critical"} and REFUSAL not in line):
            yield line
