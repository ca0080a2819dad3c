"""The reckoning: what was committed, compared with what the mail server took."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg
from sqlalchemy import create_engine, select
from sqlalchemy.engine import Connection

from chaos.faults import FROZEN_AMID, KINDS, Happened
from chaos.world import DELAY, MAIL_TIMEOUT, OURS, World, is_refused
from harness.smtp_server import Mail
from webapp.accounts.users import User
from webapp.db.clock import db_now
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import OutgoingEmail

# However long one consumer is frozen, the others send each email within this time after it is due.
NEIGHBOUR_SECONDS = 30.0


@dataclass
class Promise:
    """A committed user, and the state of its email: `status` as in the outbox, "missing" without a row."""

    address: str
    due_at: float
    status: str
    email_id: str = ""
    message_id: str = ""
    error_class: str = ""
    next_attempt_at: float = 0
    is_lease_over: bool = False
    attempts: list[str] = field(default_factory=list)
    leases_lost: int = 0
    answers_late: int = 0


def promises(world: World) -> list[Promise]:
    """Read what was committed, directly from the database."""
    url = world.backend.settings["DATABASE_URL"]
    # With several hosts, libpq finds the primary.
    of_postgres = {"url": "postgresql+psycopg://", "creator": lambda: psycopg.connect(url)}
    engine = create_engine(**({"url": url} if url.startswith("sqlite") else of_postgres))
    try:
        with engine.connect() as connection:
            return ours(connection) if world.app is OURS else naive(connection)
    finally:
        engine.dispose()


def ours(connection: Connection) -> list[Promise]:
    tries: defaultdict[str, list[str]] = defaultdict(list)
    lost: Counter[str] = Counter()
    late: Counter[str] = Counter()
    for row in connection.execute(select(DeliveryAttempt.__table__).order_by(DeliveryAttempt.id)):
        tries[str(row.email_id)].append(
            f"{row.finished_at:%H:%M:%S.%f} {row.outcome} {row.phase or ''} {row.code or ''} {row.reply} {row.worker}"
        )
        lost[str(row.email_id)] += row.outcome == "lease_expired"
        # Handed over, but no answer before the email's deadline: this happens on a busy machine.
        is_late = seconds(row.finished_at) - seconds(row.started_at) > MAIL_TIMEOUT - 0.5
        late[str(row.email_id)] += row.phase == "dot" and row.code is None and is_late
    rows = connection.execute(
        select(
            User.email,
            User.created_at.label("signed_up_at"),
            OutgoingEmail.__table__,
            (OutgoingEmail.lease_until < db_now()).label("is_lease_over"),
        ).join_from(User, OutgoingEmail, OutgoingEmail.user_id == User.id, isouter=True)
    )
    return [
        Promise(
            row.email,
            row.signed_up_at.timestamp() + DELAY,
            row.status or "missing",
            str(row.id),
            row.message_id or "",
            row.last_error_class or "",
            row.next_attempt_at.timestamp() if row.next_attempt_at else 0,
            bool(row.is_lease_over),
            tries[str(row.id)],
            lost[str(row.id)],
            late[str(row.id)],
        )
        for row in rows
    ]


def naive(connection: Connection) -> list[Promise]:
    rows = connection.exec_driver_sql("SELECT email, created_at, sent_at FROM users").all()
    return [Promise(row[0], seconds(row[1]) + DELAY, "sent" if row[2] else "queued") for row in rows]


def seconds(value: datetime | str) -> float:
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


@dataclass
class Result:
    """The outcome of one run: each list holds the addresses concerned."""

    committed: list[Promise]
    copies: dict[str, list[Mail]]
    accepted: list[str] = field(default_factory=list)
    rightly_dead: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    held_up: list[str] = field(default_factory=list)
    expired_leases: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    falsely_sent: list[str] = field(default_factory=list)
    falsely_ended: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    duplicates: int = 0
    leases_lost: int = 0
    answers_late: int = 0
    unanswered: int = 0

    def concerns(self, address: str) -> Promise | None:
        return next((promise for promise in self.committed if promise.address == address), None)


def reckon(world: World, acknowledged: Sequence[str]) -> Result:
    """Compare. `acknowledged`: the addresses of signups that were answered as done."""
    copies: defaultdict[str, list[Mail]] = defaultdict(list)
    for mail in list(world.smtp.mails):
        copies[mail.recipients[0]].append(mail)
    result = Result(promises(world), copies)
    result.unanswered = sum(not mail.is_answered for mail in world.smtp.mails)
    known = {promise.address for promise in result.committed}
    result.uncommitted = [address for address in copies if address not in known]
    result.forgotten = [address for address in acknowledged if address not in known]
    for promise in result.committed:
        judge(promise, copies.get(promise.address, []), result)
        if world.app is OURS:
            judge_rows(promise, copies.get(promise.address, []), result)
    return result


def watch_neighbours(happened: Sequence[Happened], result: Result) -> None:
    """Find emails that waited while the only fault was one consumer frozen in the middle of a transaction."""
    offset = time.time() - time.monotonic()
    spans = [(event.begun, event.ended) for event in happened if event.fault.kind == FROZEN_AMID]
    for promise in result.committed:
        taken = [mail.at + offset for mail in result.copies.get(promise.address, [])]
        is_watched = any(begun <= promise.due_at <= ended - 1 for begun, ended in spans)
        if is_watched and taken and min(taken) - promise.due_at > NEIGHBOUR_SECONDS:
            result.held_up.append(promise.address)


def judge(promise: Promise, mails: Sequence[Mail], result: Result) -> None:
    """Judge by what the mailbox shows."""
    address = promise.address
    if mails:
        result.accepted.append(address)
    elif is_refused(address):
        result.rightly_dead.append(address)
    else:
        result.lost.append(address)
    if len(mails) > 1:
        result.doubled.append(address)
        result.duplicates += len(mails) - 1


def judge_rows(promise: Promise, mails: Sequence[Mail], result: Result) -> None:
    """Judge by what our rows claim, and whether they explain the duplicates."""
    address = promise.address
    result.leases_lost += promise.leases_lost
    result.answers_late += promise.answers_late
    if promise.is_lease_over:
        result.expired_leases.append(address)
    if promise.status in {"queued", "sending"}:
        result.unfinished.append(address)
    if promise.status == "sent" and promise.message_id not in {mail.message_id for mail in mails}:
        result.falsely_sent.append(address)
    if promise.status in {"missing", "canceled"} or (promise.status == "dead") != is_refused(address):
        result.falsely_ended.append(address)
    if len({(mail.message_id, mail.link) for mail in mails}) > 1:
        result.differing.append(address)
    # Each copy but the last needs an excuse: the server did not confirm it, or too late, or its worker did not live to
    # record it.
    unheard = promise.answers_late + sum(not mail.is_answered for mail in mails[:-1])
    if len(mails) - 1 > promise.leases_lost + unheard:
        result.unexplained.append(address)


def bound(world: World, happened: Sequence[Happened], result: Result) -> tuple[int, list[str]]:
    """Return how many duplicates the faults excuse, and why."""
    senders = world.app.senders
    everywhere = senders * len(world.consumers)
    reasons = []
    total = 0
    for name, kind in KINDS.items():
        times = sum(event.fault.kind == name for event in happened)
        if kind.doubles != "thread" or not times:
            continue
        # On SQLite a frozen consumer may hold the only write lock, and nobody can record what was accepted.
        is_wide = kind.target == "consumers" or ("frozen" in name and world.backend.name == "embedded")
        share = everywhere if is_wide else senders
        reasons.append(f"{times} x {name}: one for each of {share} sending threads = {times * share}")
        total += times * share
    reasons.append(f"mails that the mail server took without being able to say so = {result.unanswered}")
    reasons.append(f"answers that came after a mail's {MAIL_TIMEOUT} s = {result.answers_late}")
    return total + result.unanswered + result.answers_late, reasons


def settle_down(world: World, patience: float, longest: float) -> float:
    """Wait until no email is on its way; return how long that took, or how long we waited.

    An email that its recipient's server deferred (4xx) may wait out its backoff, past our patience but not forever.
    One whose next attempt is later than that (in doubt twice, it waits 15 minutes) is hurried, as an operator would.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < longest:
        waiting = [promise for promise in promises(world) if is_waiting(world, promise)]
        put_off = [p for p in waiting if p.error_class == "Refused" and p.next_attempt_at > time.time()]
        if not waiting or (waited > patience and len(put_off) < len(waiting)):
            return waited
        if later := [p.email_id for p in waiting if p.next_attempt_at > time.time() + longest]:
            world.flask("mail", "retry", *later)
            world.hurried += later
        time.sleep(1)
    return longest


def is_waiting(world: World, promise: Promise) -> bool:
    if world.app is OURS:
        return promise.status in {"queued", "sending"}
    return not is_refused(promise.address) and not world.smtp.to(promise.address)
