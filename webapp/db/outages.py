"""The database when it is away: which errors say so, and the two log lines that report it."""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import psycopg
import structlog
from flask import Flask
from sqlalchemy.exc import OperationalError

log = structlog.get_logger(__name__)

# SQLSTATEs or their beginnings, in order: connection broken; shutting down or starting; read-only; ended a transaction
# that was left open (two codes); out of disk, memory or connections; broken files.
AWAY = ("08", "57P", "25006", "25P03", "25P04", "53", "58")
AWAY_SQLITE = ("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")
FULL = ("53100", "SQLITE_FULL")
READ_ONLY = ("25006", "SQLITE_READONLY")
# Our statements fit the newest migration: a missing table or column means that a migration is missing.
UNMIGRATED = ("42P01", "42703")
UNMIGRATED_SQLITE = re.compile(r"no such (table|column)|has no column")

# It is back once it answers and nothing has failed for this long. A full one still answers reads.
QUIET_SECONDS = 5.0
# While it is away, how often one task tries it.
TRY_SECONDS = 5.0

REASON_MAX = 300


class DatabaseAway(OperationalError):
    """The database cannot do its work right now, whatever the statement; this may change within seconds."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(None, None, error, hide_parameters=True, connection_invalidated=True)


class Unmigrated(Exception):
    """The database answers, but lacks migrations that this build needs."""


def is_unmigrated(error: BaseException | None) -> bool:
    """Return whether the error means that a migration is missing."""
    if isinstance(error, sqlite3.OperationalError):
        return bool(UNMIGRATED_SQLITE.search(str(error)))
    return isinstance(error, Unmigrated) or _code(error) in UNMIGRATED


def is_away(error: BaseException | None) -> bool:
    """Return whether this driver's error means that the database is away, rather than that the statement is wrong."""
    if is_unmigrated(error):
        return True
    if isinstance(error, psycopg.Error):
        # An error without a code is the driver's own: it got no connection, or no answer.
        return error.sqlstate.startswith(AWAY) if error.sqlstate else isinstance(error, psycopg.OperationalError)
    return isinstance(error, sqlite3.Error) and _code(error).startswith(AWAY_SQLITE)


def keeps_connection(error: BaseException) -> bool:
    """Return whether another connection would be no better: the database is only locked, full or unmigrated."""
    return is_unmigrated(error) or _code(error).startswith(("SQLITE_BUSY", *FULL))


def is_full(error: BaseException | None) -> bool:
    return _code(error) in FULL


def is_read_only(error: BaseException | None) -> bool:
    """Return whether the database is read-only; the driver finds that out when it connects, and has no code for it."""
    return _code(error).startswith(READ_ONLY) or "session is read-only" in str(error)


def reason(error: BaseException) -> str:
    """Return the message of a driver's error, in one line."""
    error = getattr(error, "orig", None) or error
    # The text of a statement's error also quotes the statement.
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((said or str(error)).split())[:REASON_MAX]


def _code(error: BaseException | None) -> str:
    return getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None) or ""


def flask(command: str, compose: str | None) -> str:
    """Return a command of ours as it is typed here; `compose`: how Docker Compose is called, if we run in it."""
    return f"{compose} exec web flask {command}" if compose else f"flask {command}"


class Outage:
    """Whether the database is away, as far as this process has seen; logs when an outage begins and ends.

    `compose`: how Docker Compose is called, if we run in it.
    """

    def __init__(self, compose: str | None = None) -> None:
        self.migrate = f"{compose} run --rm migrate" if compose else "flask db upgrade"
        self.doctor = flask("mail doctor", compose)
        self.lock = threading.Lock()
        self.began_at: float | None = None
        self.failed_at = 0.0
        self.full_at: float | None = None
        self.failures = 0
        self.answers = True
        self.is_unmigrated = self.was_migrated = False
        self.next_try = 0.0

    def note(self, error: BaseException) -> DatabaseAway:
        """Count a failure; return the error to raise."""
        away = DatabaseAway(error)
        with self.lock:
            begins = self.began_at is None
            self.failed_at = time.monotonic()
            if begins:
                self.began_at, self.failures = self.failed_at, 0
            if is_full(error):
                self.full_at = self.failed_at
            self.failures += 1
            self.answers, self.is_unmigrated = False, is_unmigrated(error)
        if begins:
            command = self.migrate if is_unmigrated(error) else self.doctor
            log.error("database_down", error=reason(error), command=command)
        return away

    def note_answer(self, *, is_migrated: bool = False) -> None:
        """Note an answer: it is back unless something failed just now; if unmigrated, only with `is_migrated`."""
        self.was_migrated = self.was_migrated or is_migrated
        if self.began_at is None or (self.is_unmigrated and not is_migrated):
            return
        with self.lock:
            self.answers = True
            if self.began_at is None or time.monotonic() - self.failed_at < QUIET_SECONDS:
                return
            seconds = round(time.monotonic() - self.began_at, 1)
            self.began_at = None
        log.info("database_up", seconds=seconds, failures=self.failures)

    @property
    def is_over(self) -> bool:
        """Whether there is no outage, as far as this process has seen."""
        return self.began_at is None

    def is_full(self) -> bool:
        """Return whether there was no room for a row just now: only writing one can tell."""
        return self.full_at is not None and time.monotonic() - self.full_at < QUIET_SECONDS

    def may_try(self) -> bool:
        """Return whether a task may begin: while the database is away few do, since each would use up its hint."""
        with self.lock:
            if self.began_at is None or self.answers:
                return True
            if time.monotonic() < self.next_try:
                return False
            self.next_try = time.monotonic() + TRY_SECONDS
            return True


def of(app: Flask) -> Outage:
    return cast("Outage", app.extensions["outage"])


def is_outage(error: object) -> bool:
    return isinstance(error, DatabaseAway)


def without_outages(record: logging.LogRecord) -> bool:
    """Filter a logger: an outage is logged once, not with a traceback for everything that it interrupts."""
    return not (record.exc_info and is_outage(record.exc_info[1]))


@contextmanager
def untold() -> Iterator[None]:
    """Do not log outages here: a command reports them in a line of its own."""
    logger = logging.getLogger(__name__)
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
