"""`doctor`: checks every promise, and gives each finding the command to type."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

from flask import current_app
from sqlalchemy import ColumnElement, and_, exists, func, literal_column, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import MOMENT, db_now, seconds_between, was_lately
from webapp.delivery import circuit_breaker, heartbeats, throttle
from webapp.delivery.circuit_breaker import MailBreaker
from webapp.monitoring import looks, queries, remedies
from webapp.monitoring.formatting import duration, emails_are, plain
from webapp.monitoring.looks import Finding, Report
from webapp.outbox import pause
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import UNCONFIRMED, OutgoingEmail
from webapp.outbox.pause import MailPause

# How long each may last before an operator is told: by then it should have recovered on its own.
LEASE_SECONDS = 30.0
OVERDUE_SECONDS = 60.0
BREAKER_SECONDS = 60.0
# A due email is sent at once; after this long it is waiting for something.
DUE_SECONDS = 5.0
# How long unconfirmed emails are reported.
UNCONFIRMED_SECONDS = 86400.0

# A pause this long may have been forgotten.
PAUSED_SECONDS = 3600.0
# More dead emails than this within an hour are not only typos.
REFUSED_MOST = 10
REFUSED_SECONDS = 3600.0

# The time limit for everything, looks included.
SECONDS = 9.5

SEND_NOW = "mail relay --once"
SHOW_DEAD = "mail list --status dead"
RESUME = "mail resume"
STATS = "mail stats"

# With one of these findings, the rows can't be checked.
NO_DATABASE = {"database_silent", "database_slow", "database_down", "database_unmigrated", "database_encoding"}


def examine() -> Report:
    """Look at each part, then check the rows, all within 10 s. Findings are in the order in which to handle them."""
    begun = time.monotonic()
    found = looks.look()
    if any(finding.check in NO_DATABASE for finding in found):
        return Report(found, [])
    noted: list[Finding] = []
    answer = looks.begin(lambda: _told(noted))
    wait([answer], SECONDS - (time.monotonic() - begun))
    if not answer.done():
        text = f"the database didn't answer everything within {SECONDS:g} s"
        return Report([*found, Finding("database_slow", text, remedies.start_database())], [])
    # Once is enough, also if a look reports the same problem in more detail.
    checks = {finding.check for finding in found}
    checks |= {"breaker_open"} if any(check.startswith("mail_server") for check in checks) else set()
    return Report(
        [*found, *(finding for finding in answer.result() if finding.check not in checks)],
        [note for note in noted if note.check not in checks],
    )


def _told(noted: list[Finding]) -> list[Finding]:
    """Return what is wrong according to the rows, and add to `noted` what else there is to know."""
    try:
        found = findings()
        checks = {finding.check for finding in found}
        noted += [note for note in notes() if note.check not in checks]
    except SQLAlchemyError as error:
        return [looks.of_outage(getattr(error, "orig", None) or error)]
    finally:
        db.session.rollback()
    return found


def findings() -> list[Finding]:
    """Return what is wrong according to the rows."""
    other = aliased(User)
    found: list[Finding | None] = [
        _breaker_open(since=BREAKER_SECONDS),
        *(_no_worker() or [_overdue()]),
        _paused(since=PAUSED_SECONDS),
        _refused(),
        _mails(
            "unconfirmed",
            "dead (last 24 hours): the mail server didn't confirm them in time, but may have sent them. Raise"
            " MAIL_ANSWER_TIMEOUT",
            OutgoingEmail.status == literal_column("'dead'"),
            OutgoingEmail.last_error_class == UNCONFIRMED,
            was_lately(OutgoingEmail.finished_at, UNCONFIRMED_SECONDS),
            command=remedies.flask(SHOW_DEAD),
        ),
        _mails(
            "lease_expired",
            "still held by workers whose lease ended over 30 seconds ago",
            OutgoingEmail.status == "sending",
            OutgoingEmail.lease_until < db_now(-LEASE_SECONDS),
            command=remedies.flask(SEND_NOW),
        ),
        _mails("lease_inconsistent", "in a state that contradicts the lease", _contradicts_lease()),
        _mails("sent_without_250", "marked as sent without a 250", OutgoingEmail.status == "sent", ~_proof()),
        _mails("promised_twice", "queued twice", OutgoingEmail.status.in_(queries.ACTIVE), _active_twin()),
        _user(
            "verified_in_vain",
            "used a link or code, but isn't verified",
            User.email_verified_at.is_(None),
            exists().where(VerifyEmail.user_id == User.id, VerifyEmail.used_at.is_not(None)),
            # A link proves its address, whichever signup with it the browser belongs to.
            ~exists().where(other.email_key == User.email_key, other.email_verified_at.is_not(None)),
        ),
        _user(
            "verified_but_purged",
            "is verified, but would still be purged",
            User.email_verified_at.is_not(None),
            User.purge_at.is_not(None),
        ),
    ]
    return [finding for finding in found if finding is not None]


def notes() -> list[Finding]:
    """Return what is not wrong, but an operator should know."""
    limit = throttle.spent()
    noted = [
        _breaker_open(),
        _paused(),
        Finding(
            "limit_reached", f"emails are queued after {limit} were sent: see MAIL_LIMIT_TOTAL", remedies.flask(STATS)
        )
        if limit
        else None,
        Finding("pace", "emails are waiting for their turns: see MAIL_LIMIT_TOTAL", remedies.flask(STATS))
        if throttle.is_full()
        else None,
        _mails(
            "due",
            "due, but not sent yet",
            OutgoingEmail.status == "queued",
            OutgoingEmail.next_attempt_at < db_now(-DUE_SECONDS),
            command=remedies.flask(STATS),
        ),
        _no_proxy(),
        _dead(),
    ]
    return [note for note in noted if note is not None]


def _breaker_open(since: float = 0) -> Finding | None:
    row = _held_for(MailBreaker.opened_at, since, MailBreaker.reason)
    if row is None:
        return None
    text = (
        f"the mail server has been failing for {duration(row.seconds)}; emails are queued until it works: {row.reason}"
    )
    if row.reason.startswith(("login: ", "sender: ")):
        # Said only if our own look could sign in and name the sender.
        text += ". It works from here, so restart the workers with these settings"
        return Finding("breaker_open", text, remedies.apply_settings(looks.TRY_IT))
    return Finding("breaker_open", text, remedies.flask(looks.TRY_IT))


def _paused(since: float = 0) -> Finding | None:
    row = _held_for(MailPause.paused_at, since, MailPause.paused_by, MailPause.reason)
    if row is None:
        return None
    text = f"all email has been paused for {duration(row.seconds)}, by {row.paused_by}: {row.reason}"
    return Finding("paused", text, remedies.flask(RESUME))


def _held_for(begun: Any, since: float, *columns: Any) -> Any:
    """Return for how many `seconds` this has lasted, and these columns; None unless that exceeds `since`."""
    seconds = seconds_between(begun, db_now())
    query = select(seconds.label("seconds"), *columns).where(begun.is_not(None), seconds > since - MOMENT)
    return db.session.execute(query).one_or_none()


def _dead() -> Finding | None:
    dead = _mails("dead", "dead", OutgoingEmail.status == "dead", command=remedies.flask(SHOW_DEAD))
    return dead and replace(dead, text=f"{dead.text}, {_newest_reason()}")


def _newest_reason() -> str:
    newest = select(OutgoingEmail.last_smtp_code, OutgoingEmail.last_error).where(OutgoingEmail.status == "dead")
    row = db.session.execute(newest.order_by(OutgoingEmail.created_at.desc()).limit(1)).one_or_none()
    return " ".join(["most recently:", *(str(part) for part in row or () if part)])


def _refused() -> Finding | None:
    """Report when so many recipients are refused that we may be the cause."""
    lately = was_lately(OutgoingEmail.finished_at, REFUSED_SECONDS)
    count = db.session.scalar(select(func.count()).where(OutgoingEmail.status == literal_column("'dead'"), lately)) or 0
    if count <= REFUSED_MOST:
        return None
    text = f"{count} emails died within an hour, {_newest_reason()}"
    return Finding("many_dead", text, remedies.flask(SHOW_DEAD))


def _no_proxy() -> Finding | None:
    # We don't speak https ourselves, so there must be a proxy.
    if not current_app.config["SESSION_COOKIE_SECURE"] or current_app.config["TRUSTED_PROXIES"]:
        return None
    text = (
        "PUBLIC_URL is https but no proxy is trusted: everyone shares one rate limit, and forms opened over http fail"
    )
    return Finding("no_proxy", f"{text}. Set this", "TRUSTED_PROXIES=1")


def _no_worker() -> Sequence[Finding | None]:
    """Report consumers that froze or were killed and were not replaced, or that no consumer is alive."""
    silent = [worker for worker in queries.workers() if not worker.is_alive]
    alive = heartbeats.alive()
    unreplaced = [gone for gone in silent if not any(other.started_at > gone.seen_at for other in alive)]
    found = [_frozen(gone) for gone in unreplaced]
    if alive or found:
        return found
    due = db.session.scalar(select(func.count()).where(queries.is_due())) or 0
    waiting = f", and {emails_are(due)} due" if due else ""
    return [Finding("no_worker", f"no worker is alive{waiting}", remedies.start_worker())]


def _frozen(gone: queries.Worker) -> Finding:
    text = f"worker {gone.host}:{gone.pid} was last seen at {plain(gone.seen_at)}: it's frozen or was killed"
    return Finding("worker_frozen", text, remedies.replace_worker(gone.host, gone.pid))


def _overdue() -> Finding | None:
    if circuit_breaker.is_open() or throttle.spent() or throttle.is_full() or pause.is_paused():
        return None
    return _mails(
        "overdue",
        "overdue by more than a minute, though a worker is alive",
        OutgoingEmail.status == "queued",
        OutgoingEmail.next_attempt_at < db_now(-OVERDUE_SECONDS),
        command=remedies.flask(SEND_NOW),
    )


def _mails(check: str, trouble: str, *conditions: ColumnElement[bool], command: str | None = None) -> Finding | None:
    """Return a finding if any emails meet the conditions; its default `command` shows the first of them."""
    query = select(OutgoingEmail.id, func.count().over()).where(*conditions).order_by(OutgoingEmail.id).limit(1)
    first = db.session.execute(query).one_or_none()
    if first is None:
        return None
    email_id, count = first
    return Finding(check, f"{emails_are(count)} {trouble}", command or remedies.flask(f"mail show {email_id}"))


def _user(check: str, trouble: str, *conditions: ColumnElement[bool]) -> Finding | None:
    user_id = db.session.scalar(select(User.id).where(*conditions).order_by(User.id).limit(1))
    if user_id is None:
        return None
    return Finding(check, f"user {user_id} {trouble}", remedies.flask(f"mail list --user {user_id}"))


# Conditions of the checks.


def _contradicts_lease() -> ColumnElement[bool]:
    is_leased = and_(OutgoingEmail.lease_token.is_not(None), OutgoingEmail.lease_until.is_not(None))
    has_lease = or_(OutgoingEmail.lease_token.is_not(None), OutgoingEmail.lease_until.is_not(None))
    return or_(and_(OutgoingEmail.status == "sending", ~is_leased), and_(OutgoingEmail.status != "sending", has_lease))


def _proof() -> ColumnElement[bool]:
    return exists().where(
        DeliveryAttempt.email_id == OutgoingEmail.id, DeliveryAttempt.outcome == "sent", DeliveryAttempt.code == 250
    )


def _active_twin() -> ColumnElement[bool]:
    twin = aliased(OutgoingEmail)
    return exists().where(
        twin.dedupe_key == OutgoingEmail.dedupe_key, twin.id != OutgoingEmail.id, twin.status.in_(queries.ACTIVE)
    )
