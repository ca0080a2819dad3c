"""Figures, measured again and again: memory, files, threads, connections, rows, keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from statistics import median
from types import TracebackType
from typing import Any, Self

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import dict_row
from redis import Redis

from chaos.soak.stage import METRICS_TOKEN, Stage
from chaos.soak.verdict import Email
from harness.usage import open_files, resident, threads

# How often Prometheus scrapes.
SCRAPE_SECONDS = 15.0
MB = 1e6

ROWS = {
    "emails": "outgoing_emails",
    "attempts": "delivery_attempts",
    "events": "audit_events",
    "sessions": "user_sessions",
    "code tries": "code_tries",
    "pending users": "users WHERE email_verified_at IS NULL",
    "users": "users",
}
COUNTS = ", ".join(f'(SELECT count(*) FROM {rows}) AS "{name}"' for name, rows in ROWS.items())  # noqa: S608
DATABASE = f"""
    SELECT {COUNTS}, pg_database_size(current_database()) AS "database",
        (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid())
            AS connections
"""  # noqa: S608 - our own names
EMAILS = """
    SELECT message_id, to_address, status, next_attempt_at, coalesce(last_error, '') AS why,
    created_at + make_interval(secs => coalesce(delay, 0)) > now() AS is_for_later FROM outgoing_emails
"""


class Watch:
    """Measures every `pause` seconds. `emails`: by Message-ID, including those whose rows are gone."""

    def __init__(self, stage: Stage, pause: float) -> None:
        self.stage = stage
        self.pause = pause
        self.database = psycopg.connect(stage.database, autocommit=True, row_factory=dict_row)
        self.redis = Redis.from_url(stage.valkey.url)
        self.looks: list[dict[str, float]] = []
        self.last: dict[str, float] = {}
        self.emails: dict[str, Email] = {}
        self.counters: dict[Any, float] = {}
        self.failures: list[str] = []
        self.logged = 0
        self.scraped_at = 0.0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.database.close()
        self.redis.close()

    def close(self) -> None:
        """Stop measuring."""
        self.over.set()
        self.thread.join()

    def hour(self) -> dict[str, float]:
        """Return the median of each figure since the last call, and how much was logged since."""
        self.try_to(self._look)
        # If nothing could be measured, the verdict says so.
        looks, self.looks = self.looks or [self.last], []
        logged, self.logged = self.logged, sum(log.stat().st_size for log in self.stage.logs)
        return {name: median(look[name] for look in looks) for name in looks[0]} | {"log": (self.logged - logged) / 1e3}

    def _look(self) -> None:
        web, consumers = self.stage.web.popen.pid, [consumer.popen.pid for consumer in self.stage.consumers]
        every = [web, *consumers]
        row: dict[str, float] = self.database.execute(DATABASE).fetchone() or {}
        self.last = {
            **row,
            "database": row["database"] / MB,
            "web": resident(web) / MB,
            "workers": sum(resident(pid) for pid in consumers) / MB,
            "files": sum(open_files(pid) for pid in every),
            "threads": sum(threads(pid) for pid in every),
            "redis": self.redis.info("memory")["used_memory"] / MB,
            "keys": self.redis.dbsize(),
        }
        self.looks.append(self.last)

    def read_emails(self) -> None:
        """Record the state of every email; keep an address that has been erased since."""
        for row in self.database.execute(EMAILS):
            known = self.emails.setdefault(row["message_id"], Email(row["to_address"]))
            known.status, known.why, known.due_at = row["status"], row["why"], row["next_attempt_at"].timestamp()
            known.is_for_later = row["is_for_later"]

    def scrape(self) -> None:
        """Read all counters as Prometheus does, and record those that went down."""
        headers = {"Authorization": f"Bearer {METRICS_TOKEN}"}
        answer = httpx.get(f"{self.stage.url}/metrics", headers=headers, timeout=20).raise_for_status()
        for family in text_string_to_metric_families(answer.text):
            if family.type not in {"counter", "histogram"}:
                continue
            for sample in family.samples:
                key = sample.name, *sorted(sample.labels.items())
                # Sums may differ in the last digit.
                if sample.value < self.counters.get(key, 0.0) - 1e-6:
                    self.failures.append(f"counter {key} went down from {self.counters[key]} to {sample.value}")
                self.counters[key] = sample.value

    def try_to(self, measure: Callable[[], object]) -> None:
        try:
            measure()
        except Exception as error:  # noqa: BLE001 - any failure is part of the verdict
            self.failures.append(f"{measure.__name__}: {type(error).__name__}: {error}")

    def _run(self) -> None:
        while not self.over.wait(self.pause):
            self.try_to(self._look)
            self.try_to(self.read_emails)
            if time.monotonic() > self.scraped_at + SCRAPE_SECONDS:
                self.scraped_at = time.monotonic()
                self.try_to(self.scrape)
