"""What is seen of the mails, asked in one place: commands, pages and metrics show the same figures."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, or_, select, tuple_
from sqlalchemy.orm import aliased

from webapp import breaker, budget
from webapp.attempts import DeliveryAttempt
from webapp.breaker import MailBreaker
from webapp.clock import db_now
from webapp.extensions import db
from webapp.outbox import OutgoingEmail
from webapp.users import User
from webapp.verification import VerifyEmail
from webapp.workers import ALIVE_SECONDS, WorkerHeartbeat

STATUSES = ("queued", "sending", "sent", "dead", "canceled")
ACTIVE = ("queued", "sending")

# What may be in trouble for so long before an operator is told: by then it should have mended itself.
LEASE_SECONDS = 30.0
OVERDUE_SECONDS = 60.0
BREAKER_SECONDS = 60.0

START_WORKER = "huey_consumer huey_worker.huey -w 4 -g TERM"
SEND_NOW = "flask mail relay --once"
SHOW_DEAD = "flask mail list --status dead"


# How things are: numbers that a glance takes in.


@dataclass(frozen=True)
class Stats:
    """`oldest_due_seconds`, `breaker_seconds`: nothing while no mail is due, while the breaker is closed.

    `limit_reached`: the limit of mails in all for which they wait now.
    """

    by_status: dict[str, int]
    due: int
    oldest_due_seconds: float | None
    sent_last_hour: int
    breaker_seconds: float | None
    breaker_reason: str | None
    limit_reached: str | None
    workers: int


def stats() -> Stats:
    counts = select(OutgoingEmail.status, func.count()).group_by(OutgoingEmail.status)
    counted = {row.status: row[1] for row in db.session.execute(counts)}
    waiting = db.session.execute(
        select(func.count().label("due"), func.min(OutgoingEmail.next_attempt_at).label("since"), _now()).where(_due())
    ).one()
    server = db.session.execute(select(MailBreaker.opened_at.label("since"), MailBreaker.reason, _now())).one()
    return Stats(
        by_status={status: counted.get(status, 0) for status in STATUSES},
        due=waiting.due,
        oldest_due_seconds=_age(waiting),
        sent_last_hour=_number(select(func.count()).where(OutgoingEmail.sent_at > db_now(-3600))),
        breaker_seconds=_age(server),
        breaker_reason=server.reason,
        limit_reached=budget.spent(),
        workers=_number(select(func.count()).where(_is_alive())),
    )


def due() -> int:
    """Return how many mails wait for nothing but a worker."""
    return _number(select(func.count()).where(_due()))


# Mails, and their attempts.


@dataclass(frozen=True)
class Filter:
    """Which mails are meant; nothing left out means any."""

    status: str | None = None
    template: str | None = None
    address: str | None = None
    code: int | None = None
    user_id: int | None = None


def mails(which: Filter, *, limit: int, before: uuid.UUID | None = None) -> Sequence[OutgoingEmail]:
    """Return the newest mails first; the next page comes `before` the last of this one."""
    query = select(OutgoingEmail).where(*_conditions(which))
    if before is not None:
        last = aliased(OutgoingEmail)
        key = select(last.created_at, last.id).where(last.id == before).subquery()
        query = query.join(key, tuple_(OutgoingEmail.created_at, OutgoingEmail.id) < tuple_(key.c.created_at, key.c.id))
    return db.session.scalars(
        query.order_by(OutgoingEmail.created_at.desc(), OutgoingEmail.id.desc()).limit(limit)
    ).all()


def ids(which: Filter) -> Sequence[uuid.UUID]:
    """Return all of them, the oldest first."""
    return db.session.scalars(
        select(OutgoingEmail.id).where(*_conditions(which)).order_by(OutgoingEmail.created_at, OutgoingEmail.id)
    ).all()


def mails_like(prefix: str, *, limit: int) -> Sequence[OutgoingEmail]:
    """Return the mails whose id begins so. Raises ValueError when no id can."""
    digits = prefix.replace("-", "")
    if not re.fullmatch("[0-9A-Fa-f]{1,32}", digits):
        raise ValueError(f"{prefix!r} is not the beginning of an id")
    # A range of the key: the same on engines that keep ids as bytes and as text.
    first, last = uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))
    return db.session.scalars(
        select(OutgoingEmail).where(OutgoingEmail.id.between(first, last)).order_by(OutgoingEmail.id).limit(limit)
    ).all()


def attempts_at(email_id: uuid.UUID) -> Sequence[DeliveryAttempt]:
    return db.session.scalars(
        select(DeliveryAttempt).where(DeliveryAttempt.email_id == email_id).order_by(DeliveryAttempt.id)
    ).all()


def last_attempt() -> int:
    """Return the newest attempt's id: what came after can be asked for with outcomes()."""
    return _number(select(func.max(DeliveryAttempt.id)))


def outcomes(worker: str, *, after: int) -> dict[str, int]:
    """Return how this worker's attempts ended since."""
    query = select(DeliveryAttempt.outcome, func.count()).where(
        DeliveryAttempt.id > after, DeliveryAttempt.worker == worker
    )
    return {row.outcome: row[1] for row in db.session.execute(query.group_by(DeliveryAttempt.outcome))}


@dataclass(frozen=True)
class Worker:
    """A consumer, alive or gone without a word; `sending`: how many mails are in its hands."""

    name: str
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    is_alive: bool
    sending: int


def workers() -> Sequence[Worker]:
    sending = (
        select(func.count())
        # A thread's name follows its consumer's.
        .where(OutgoingEmail.status == "sending", OutgoingEmail.locked_by.startswith(WorkerHeartbeat.name + ":"))
        .scalar_subquery()
    )
    beats = select(WorkerHeartbeat, _is_alive(), sending).order_by(WorkerHeartbeat.started_at)
    return [
        Worker(beat.name, beat.host, beat.pid, beat.started_at, beat.seen_at, is_alive, count)
        for beat, is_alive, count in db.session.execute(beats)
    ]


# What is wrong.


@dataclass(frozen=True)
class Finding:
    """A promise that is not kept, and the command that mends it or shows more."""

    check: str
    text: str
    command: str


def findings() -> list[Finding]:
    """Return what should not be, in the order in which to look at it."""
    other = aliased(User)
    found = [
        _breaker_open(),
        _no_worker() or _overdue(),
        _mails(
            "lease_expired",
            "held by workers whose time was over half a minute ago",
            OutgoingEmail.status == "sending",
            OutgoingEmail.lease_until < db_now(-LEASE_SECONDS),
            command=SEND_NOW,
        ),
        _mails("lease_inconsistent", "in a state that the lease contradicts", _contradicts_lease()),
        _mails("sent_without_250", "sent without an attempt that got a 250", OutgoingEmail.status == "sent", ~_proof()),
        _mails("promised_twice", "on their way twice", OutgoingEmail.status.in_(ACTIVE), _active_twin()),
        _user(
            "verified_in_vain",
            "used a verification, and is not verified",
            User.email_verified_at.is_(None),
            exists().where(VerifyEmail.user_id == User.id, VerifyEmail.used_at.is_not(None)),
            # A link proves its address, for whichever signup of it the browser held.
            ~exists().where(other.email_key == User.email_key, other.email_verified_at.is_not(None)),
        ),
        _user(
            "verified_but_purged",
            "is verified, and would be purged all the same",
            User.email_verified_at.is_not(None),
            User.purge_at.is_not(None),
        ),
    ]
    return [finding for finding in found if finding is not None]


def notes() -> list[Finding]:
    """Return what is as it should be, and yet for an operator to know."""
    limit = budget.spent()
    noted = [
        Finding("limit_reached", f"mails wait, since {limit} were sent: see MAIL_LIMIT_TOTAL", "flask mail stats")
        if limit
        else None,
        _mails("dead", "dead", OutgoingEmail.status == "dead", command=SHOW_DEAD),
    ]
    return [note for note in noted if note is not None]


def _breaker_open() -> Finding | None:
    reason = db.session.scalar(select(MailBreaker.reason).where(MailBreaker.opened_at < db_now(-BREAKER_SECONDS)))
    if reason is None:
        return None
    return Finding("breaker_open", f"the mail server has been failing for over a minute: {reason}", SEND_NOW)


def _no_worker() -> Finding | None:
    if db.session.scalar(select(exists().where(_is_alive()))):
        return None
    return _mails("no_worker", "due, and no worker is alive", _due(), command=START_WORKER)


def _overdue() -> Finding | None:
    if breaker.is_open() or budget.spent():
        return None
    return _mails(
        "overdue",
        "overdue by more than a minute, though a worker is alive",
        OutgoingEmail.status == "queued",
        OutgoingEmail.next_attempt_at < db_now(-OVERDUE_SECONDS),
        command=SEND_NOW,
    )


def _mails(check: str, trouble: str, *conditions: ColumnElement[bool], command: str | None = None) -> Finding | None:
    """Return what is wrong with the mails that are so; without a command, the one that shows the first of them."""
    query = select(OutgoingEmail.id, func.count().over()).where(*conditions).order_by(OutgoingEmail.id).limit(1)
    first = db.session.execute(query).one_or_none()
    if first is None:
        return None
    email_id, count = first
    text = f"{count} {'mail is' if count == 1 else 'mails are'} {trouble}"
    return Finding(check, text, command or f"flask mail show {email_id}")


def _user(check: str, trouble: str, *conditions: ColumnElement[bool]) -> Finding | None:
    user_id = db.session.scalar(select(User.id).where(*conditions).order_by(User.id).limit(1))
    if user_id is None:
        return None
    return Finding(check, f"user {user_id} {trouble}", f"flask mail list --user {user_id}")


# What the questions are made of.


def _conditions(which: Filter) -> list[ColumnElement[bool]]:
    wanted = {
        OutgoingEmail.status: which.status,
        OutgoingEmail.template: which.template,
        func.lower(OutgoingEmail.to_address): which.address and which.address.lower(),
        OutgoingEmail.last_smtp_code: which.code,
        OutgoingEmail.user_id: which.user_id,
    }
    return [column == value for column, value in wanted.items() if value is not None]


def _due() -> ColumnElement[bool]:
    return and_(OutgoingEmail.status == "queued", OutgoingEmail.next_attempt_at <= db_now())


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
        twin.dedupe_key == OutgoingEmail.dedupe_key, twin.id != OutgoingEmail.id, twin.status.in_(ACTIVE)
    )


def _is_alive() -> ColumnElement[bool]:
    return WorkerHeartbeat.seen_at > db_now(-ALIVE_SECONDS)


def _now() -> ColumnElement[datetime]:
    return db_now().label("now")


def _age(row: Row[*tuple[Any, ...]]) -> float | None:
    """Return for how many seconds it has been so, by the database's clock."""
    return (row.now - row.since).total_seconds() if row.since else None


def _number(query: Select[Any]) -> int:
    return db.session.scalar(query) or 0
