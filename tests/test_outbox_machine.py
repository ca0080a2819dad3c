"""Workers, crashes and time in any order: whatever happens, a promise is neither lost nor kept by two at once."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Flask
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Row, delete, select

from tests.factories import NO_PASSWORD, travel
from webapp import backlog, outbox, users, verification
from webapp.attempts import DeliveryAttempt, Failure
from webapp.clock import db_now
from webapp.extensions import db
from webapp.outbox import LeaseLost, OutgoingEmail
from webapp.users import User
from webapp.verification import VerifyEmail

REFUSED = Failure("Refused", "451 try later", phase="recipient", code=451)
DOWN = Failure(outbox.SERVER_FAILURE, "connection refused", phase="connect")

PEOPLE = 2
MAX_ATTEMPTS = 3
LEASE = 20.0  # MAIL_TIMEOUT of 5 s and the margin
DAY = 86400.0

Mail = Row[Any]


@dataclass(frozen=True)
class Ending:
    """How a worker ends its hold on a mail, what the mail may be then, and what it costs."""

    end: Callable[[OutgoingEmail], None]
    becomes: set[str]
    attempts: int


ENDINGS = {
    "settle": Ending(lambda email: outbox.settle(email, "250 taken"), {"sent"}, 1),
    "postpone": Ending(lambda email: outbox.postpone(email, REFUSED), {"queued", "dead"}, 1),
    "give_back": Ending(lambda email: outbox.give_back(email, DOWN, delay=15, in_doubt=True), {"queued"}, 0),
    "bury": Ending(lambda email: outbox.bury(email, REFUSED), {"dead"}, 1),
    "drop": Ending(lambda email: outbox.drop(email, "nobody needs it"), {"canceled"}, 0),
}


@dataclass
class Claim:
    """What a worker believes to hold; `age` counts the time that was let pass since."""

    email: OutgoingEmail
    age: float = 0
    begun: float = field(default_factory=time.monotonic)
    is_live: bool = True

    @property
    def may_be_over(self) -> bool:
        return self.age + time.monotonic() - self.begun > LEASE - 1

    @property
    def must_be_over(self) -> bool:
        return self.age > LEASE


class Outbox(RuleBasedStateMachine):
    """Each rule says how mails may move; the invariant looks at what they did."""

    app: Flask

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[uuid.UUID, Mail] = {}
        self.moves: set[tuple[str, str]] = set()
        self.claims: list[Claim] = []

    @initialize()
    def begin(self) -> None:
        with self.committing():
            for table in (DeliveryAttempt, OutgoingEmail, VerifyEmail, User):
                db.session.execute(delete(table))
            proofs = [verification.begin(person(n), "signup") for n in range(PEOPLE)]
        self.proofs = [(proof.user_id, proof.id) for proof in proofs]
        for n in range(PEOPLE):
            self.post(n, 0, None)

    @rule(n=st.integers(0, PEOPLE - 1), delay=st.sampled_from([0, 10]), expires_in=st.sampled_from([None, DAY]))
    def post(self, n: int, delay: float, expires_in: float | None) -> None:
        user_id, proof_id = self.proofs[n]
        is_active = any(mail.verify_email_id == proof_id and mail.status in ACTIVE for mail in self.seen.values())
        with self.committing():
            email = outbox.post(
                to_address=f"mick{n}@example.com",
                user_id=user_id,
                verify_email_id=proof_id,
                dedupe_key=f"verify:{proof_id}",
                delay=delay,
                expires_in=expires_in,
            )
        assert (email is None) == is_active
        if email is not None:
            self.seen[email.id] = self.mails()[email.id]

    @precondition(lambda self: self.waits())
    @rule(worker=st.sampled_from(["ann", "ben", "cat"]), limit=st.integers(1, 3))
    def claim(self, worker: str, limit: int) -> None:
        self.moves = {("queued", "sending")}
        with self.committing():
            claimed = outbox.claim(worker, limit=limit)
        assert len(claimed) <= limit
        self.claims += map(Claim, claimed)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), name=st.sampled_from(sorted(ENDINGS)))
    def end(self, data: st.DataObject, name: str) -> None:
        """A worker is done with a mail; one that lost its lease meanwhile writes nothing."""
        self.finish(data.draw(st.sampled_from(self.claims)), name)

    @precondition(lambda self: self.waits())
    @rule(name=st.sampled_from(sorted(ENDINGS)))
    def work(self, name: str) -> None:
        """A worker that nothing disturbs takes a mail to its end."""
        self.claim("dan", 1)
        self.every_promise_is_kept()
        if self.claims and self.claims[-1].email.locked_by == "dan":
            self.finish(self.claims[-1], name)

    def finish(self, claim: Claim, name: str) -> None:
        self.claims.remove(claim)
        email_id, ending = claim.email.id, ENDINGS[name]
        tries = self.tries()
        if claim.is_live:
            self.moves = {("sending", status) for status in ending.becomes}
            with self.committing():
                ending.end(claim.email)
            assert self.mails()[email_id].attempts == self.seen[email_id].attempts + ending.attempts
            assert len(self.tries()) == len(tries) + 1
        else:
            with self.committing(), pytest.raises(LeaseLost):
                ending.end(claim.email)
            assert self.mails() == self.seen
            assert self.tries() == tries

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A worker dies, and forgets all that it holds."""
        worker = data.draw(st.sampled_from([claim.email.locked_by for claim in self.claims]))
        self.claims = [claim for claim in self.claims if claim.email.locked_by != worker]

    @rule(seconds=st.sampled_from([7.0, 21.0, 3700.0, 2 * DAY]))
    def pass_time(self, seconds: float) -> None:
        travel(self.app, seconds)
        for claim in self.claims:
            claim.age += seconds

    @rule()
    def reap(self) -> None:
        self.moves = {("sending", "queued"), ("sending", "dead"), ("queued", "dead")}
        with self.committing():
            backlog.reap()
        now = self.mails()
        for claim in self.claims:
            was_live, claim.is_live = claim.is_live, claim.is_live and holds(claim, now[claim.email.id])
            assert claim.may_be_over or claim.is_live == was_live
            assert not (claim.must_be_over and claim.is_live)
        for email_id, before in self.seen.items():
            if before.status == "sending" != now[email_id].status:
                assert now[email_id].in_doubt
                assert now[email_id].lease_expiries == before.lease_expiries + 1

    @rule(data=st.data())
    def revive(self, data: st.DataObject) -> None:
        self.moves = {("dead", "queued")}
        with self.committing():
            count = backlog.revive(self.some(data))
        revived = [mail for mail in self.mails().values() if mail.status != self.seen[mail.id].status]
        assert count == len(revived)
        assert {(mail.attempts, mail.lease_expiries) for mail in revived} <= {(0, 0)}

    @rule(data=st.data())
    def forgive(self, data: st.DataObject) -> None:
        self.moves = {("dead", "queued")}
        with self.committing():
            backlog.forgive(self.some(data), DOWN, delay=15)

    @rule(data=st.data())
    def hurry(self, data: st.DataObject) -> None:
        with self.committing():
            backlog.hurry(self.some(data))

    @rule(n=st.integers(0, PEOPLE - 1))
    def cancel(self, n: int) -> None:
        self.moves = {("queued", "canceled")}
        with self.committing():
            outbox.cancel(self.proofs[n][1], "verified meanwhile")

    @invariant()
    def every_promise_is_kept(self) -> None:
        now = self.mails()
        assert now.keys() == self.seen.keys(), "a mail vanished"
        moved = {(before.status, now[email_id].status) for email_id, before in self.seen.items()}
        assert {(before, after) for before, after in moved if before != after} <= self.moves
        sent = Counter(row.email_id for row in self.tries() if (row.outcome, row.code) == ("sent", 250))
        for email_id, mail in now.items():
            assert mail.message_id == self.seen[email_id].message_id
            assert (mail.status == "sending") == (mail.lease_token is not None) == (mail.lease_until is not None)
            assert mail.attempts <= mail.max_attempts - (mail.status in ACTIVE)
            assert sent[email_id] == (mail.status == "sent")
        assert len({claim.email.id for claim in self.claims if claim.is_live}) == sum(
            holds(claim, now[claim.email.id]) for claim in self.claims
        ), "two hold one mail, or one believes so in vain"
        active = Counter(mail.dedupe_key for mail in now.values() if mail.status in ACTIVE)
        assert set(active.values()) <= {1}
        self.seen, self.moves = {email_id: now[email_id] for email_id in self.seen}, set()

    def teardown(self) -> None:
        """Whatever happened: with one worker that works, every mail comes to its end."""
        # Twice, since a mail that outlived many workers waits for another hour.
        for _ in range(2):
            travel(self.app, 2 * 3600)
            with self.committing():
                backlog.reap()
                for email in outbox.claim("healthy", limit=1000):
                    outbox.settle(email, "250 taken")
        assert not [mail for mail in self.mails().values() if mail.status in ACTIVE]

    # What the rules are made of.

    @contextmanager
    def committing(self) -> Iterator[None]:
        with self.app.app_context():
            yield
            db.session.commit()

    def some(self, data: st.DataObject) -> list[uuid.UUID]:
        """All of them, or a few."""
        known = list(self.seen)
        return data.draw(st.one_of(st.just(known), st.lists(st.sampled_from(known), min_size=1, unique=True)))

    def waits(self) -> bool:
        return any(mail.status == "queued" for mail in self.seen.values())

    def mails(self) -> dict[uuid.UUID, Mail]:
        with self.app.app_context():
            return {row.id: row for row in db.session.execute(select(*OutgoingEmail.__table__.columns))}

    def tries(self) -> list[Row[Any]]:
        with self.app.app_context():
            columns = DeliveryAttempt.__table__.columns
            return list(db.session.execute(select(*columns).order_by(DeliveryAttempt.id)))


ACTIVE = {"queued", "sending"}


def holds(claim: Claim, mail: Mail) -> bool:
    return bool(mail.lease_token == claim.email.lease_token)


def person(n: int) -> User:
    return User(
        username=f"mick{n}",
        username_key=f"mick{n}",
        full_name="",
        email=f"mick{n}@example.com",
        email_key=f"mick{n}@example.com",
        password_hash=NO_PASSWORD,
        purge_at=db_now(users.PURGE_AFTER),
        created_at=db_now(),
    )


def test_in_any_order_of_workers_crashes_and_time_no_promise_is_lost_and_none_is_kept_by_two(app: Flask) -> None:
    app.config["MAIL_MAX_ATTEMPTS"] = MAX_ATTEMPTS
    machine = type("OutboxOfThisApp", (Outbox,), {"app": app})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            # The same examples each time, where nobody can look into a rare one.
            derandomize=bool(os.environ.get("CI")),
        ),
    )
