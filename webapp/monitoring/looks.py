"""Direct looks at the database, the queue and the mail server, in parallel and with a time limit."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from flask import Flask, current_app
from redis.exceptions import AuthenticationError, OutOfMemoryError, ResponseError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from webapp.db import clock, outages, schema
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.db.engines import Unsuitable
from webapp.db.outages import DatabaseAway
from webapp.delivery.heartbeats import WorkerHeartbeat
from webapp.extensions import huey, mail
from webapp.monitoring import remedies
from webapp.outbox import posting
from webapp.queue.broker_breaker import BROKER_ERRORS
from webapp.queue.storage import RedisQueue
from webapp.queue.storage import create as create_storage
from webapp.smtp.addresses import bare
from webapp.smtp.client import Deadline
from webapp.smtp.protocol import Command, SmtpError, is_crowded

# The time limit of each look; what has not answered by then is in trouble, whatever the reason.
SECONDS = 5.0
# Each look gives up this much earlier, so that it can still say what went wrong.
MARGIN = 0.5

# Clocks that differ by more than this send emails late and end sessions early.
CLOCK_SECONDS = 5.0

TRY_IT = "mail test you@example.com"
SET_IT = "Set what is right, then restart web and workers"

# The notes which mean that emails are waiting.
HOLDING = {"breaker_open", "paused", "limit_reached", "pace", "due"}


@dataclass(frozen=True)
class Finding:
    """A promise that is not kept, and the command that fixes it or shows more."""

    check: str
    text: str
    command: str


@dataclass(frozen=True)
class Report:
    """`notes`: nothing is wrong with it, but an operator should know."""

    findings: list[Finding]
    notes: list[Finding]

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, and no email waits for anything except its due time."""
        return not self.findings and HOLDING.isdisjoint(note.check for note in self.notes)


Look = Callable[[], list[Finding]]


def look() -> list[Finding]:
    """Return what is wrong with the three of them."""
    silent = {
        database: Finding("database_silent", "the database", remedies.start_database()),
        queue: Finding("queue_silent", "the queue", remedies.start_queue()),
        mail_server: Finding("mail_server_silent", "the mail server", remedies.flask(TRY_IT)),
    }
    answers = {one: begin(one) for one in silent}
    wait(answers.values(), SECONDS)
    found = []
    for one, answer in answers.items():
        if answer.done():
            found += answer.result()
        else:
            nothing = silent[one]
            found.append(Finding(nothing.check, f"{nothing.text} didn't answer within {SECONDS:g} s", nothing.command))
    return found


def begin(one: Look) -> Future[list[Finding]]:
    """Run a look in a separate thread that can be abandoned: not everything in it has a deadline."""
    answer: Future[list[Finding]] = Future()
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - Flask's own way

    def run() -> None:
        try:
            with app.app_context():
                found = one()
            # Not earlier: by now its connections are given back.
            answer.set_result(found)
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def database() -> list[Finding]:
    """Write an email, then roll back: a full or read-only database still answers every query."""
    try:
        schema.check()
        posting.post(
            to_address="doctor@example.invalid",
            user_id=None,
            dedupe_key=f"doctor:{uuid.uuid4()}",
            template="test",
            locale="en",
            priority=posting.NOTICE_PRIORITY,
            max_attempts=1,
        )
        db.session.rollback()
        return clocks()
    except DatabaseAway as away:
        return [of_outage(away.orig)]
    except SQLAlchemyError as error:
        return [
            Finding(
                "database_slow",
                f"the database couldn't save an email: {type(error).__name__}",
                remedies.start_database(),
            )
        ]


def of_outage(error: BaseException | None) -> Finding:
    said = outages.reason(error) if error else "no answer"
    if outages.is_unmigrated(error):
        return Finding("database_unmigrated", f"the database lacks a migration: {said}", remedies.migrate())
    if isinstance(error, Unsuitable):
        return Finding("database_encoding", f"DATABASE_URL {said.partition(':')[0]}", remedies.new_database())
    if outages.is_full(error):
        return Finding("database_full", f"the database is full: {said}", remedies.make_room())
    if outages.is_read_only(error):
        return Finding("database_read_only", f"the database is read-only: {said}", remedies.who_may_write())
    return Finding("database_down", f"the database isn't responding: {said} (DATABASE_URL)", remedies.start_database())


def clocks() -> list[Finding]:
    """Compare this machine's clock with the database's, and the database's with what workers wrote."""
    theirs, seen = db.session.execute(select(db_now(), func.max(WorkerHeartbeat.seen_at))).one()
    db.session.rollback()
    ahead = (clock.now() - theirs).total_seconds()
    found = [of_clock(ahead, "the database's")]
    if seen is not None and (late := (seen - theirs).total_seconds()) > CLOCK_SECONDS:
        text = f"a worker was last seen {late:.0f} s in the future: the database's clock is behind, or was ahead"
        found.append(Finding("clock", text, remedies.set_clock()))
    return [one for one in found if one]


def of_clock(ahead: float, whose: str) -> Finding | None:
    if abs(ahead) <= CLOCK_SECONDS:
        return None
    text = f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {whose}"
    return Finding("clock", text, remedies.set_clock())


def queue() -> list[Finding]:
    """Store a value there, and remove it again."""
    key = f"doctor:{uuid.uuid4()}"
    try:
        storage = create_storage(huey.name, current_app.config, (SECONDS - MARGIN) / 2)
        storage.put_data(key, b"")
        storage.pop_data(key)
        if isinstance(storage, RedisQueue):
            seconds, micros = storage.conn.time()
            skewed = of_clock(clock.now().timestamp() - seconds - micros / 1e6, "Redis's")
            storage.conn.connection_pool.disconnect()
            return [skewed] if skewed else []
        storage.close()
    except BROKER_ERRORS as error:
        return [of_queue(error)]
    return []


def of_queue(error: Exception) -> Finding:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, OutOfMemoryError) or (isinstance(error, sqlite3.Error) and outages.is_full(error)):
        return Finding("queue_full", f"the queue is full: {said}", remedies.queue_info("memory"))
    if said.startswith("MISCONF"):
        return Finding("queue_full", f"the queue can't save to its disk: {said}", remedies.queue_info("persistence"))
    if isinstance(error, AuthenticationError | ResponseError):
        return Finding("queue_wrong", f"REDIS_URL is wrong: {said}. {SET_IT}", remedies.apply_settings("mail doctor"))
    return Finding("queue_down", f"the queue isn't responding: {said} (REDIS_URL)", remedies.start_queue())


def mail_server() -> list[Finding]:
    """Sign in there, and name the sender; no email is sent."""
    sender = bare(current_app.config["MAIL_DEFAULT_SENDER"])
    deadline = Deadline(SECONDS - MARGIN, lambda: False)
    try:
        with mail.call(deadline) as conversation:
            conversation.begin([Command("sender", f"mail FROM:<{sender}>")], deadline)
    except SmtpError as error:
        # Workers have all the connections that it allows, which shows that it works.
        return [] if is_crowded(error) else [of_mail_server(error)]
    return []


def of_mail_server(error: SmtpError) -> Finding:
    said = " ".join(str(error).split())
    if error.phase == "login":
        text = f"the mail server refuses MAIL_USERNAME and MAIL_PASSWORD: {said}. {SET_IT}"
        return Finding("mail_server_login", text, remedies.apply_settings(TRY_IT))
    if error.phase == "sender":
        text = f"the mail server refuses MAIL_DEFAULT_SENDER: {said}. {SET_IT}"
        return Finding("mail_server_sender", text, remedies.apply_settings(TRY_IT))
    return Finding("mail_server_down", f"the mail server isn't accepting email: {said}", remedies.flask(TRY_IT))
