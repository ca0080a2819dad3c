"""Workers, crashes and time in any order: a promise is never lost, and never kept by two workers at once."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Row, delete, select

from tests.factories import NO_PASSWORD, Clock
from webapp.accounts import links
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.outbox import claims, kinds, outcomes, outgoing_email, posting, reaper, transitions
from webapp.outbox.attempts import DeliveryAttempt, Failure
from webapp.outbox.claims import LeaseLost
from webapp.outbox.outgoing_email import OutgoingEmail

REFUSED = Failure("Refused", "451 try later", phase="recipient", code=451)
DOWN = Failure(outgoing_email.SERVER_FAILURE, "connection refused", phase="connect")

PEOPLE = 2
MAX_ATTEMPTS = 2
LEASE = timedelta(seconds=20)  # MAIL_TIMEOUT of 5 s plus the margin
DAY = 86400.0

Mail = Row[Any]


@dataclass(frozen=True)
class Ending:
    """How a worker ends its hold on an email, which statuses the email may then have, and what it costs."""

    end: Callable[[OutgoingEmail], None]
    becomes: set[str]
    attempts: int


ENDINGS = {
    "settle": Ending(lambda email: outcomes.settle(email, "250 taken"), {"sent"}, 1),
    "postpone": Ending(lambda email: outcomes.postpone(email, REFUSED), {"queued", "dead"}, 1),
    "requeue": Ending(lambda email: outcomes.requeue(email, DOWN, delay=15, in_doubt=True), {"queued"}, 0),
    "bury": Ending(lambda email: outcomes.bury(email, REFUSED), {"dead"}, 1),
    "cancel": Ending(lambda email: outcomes.cancel(email, "nobody needs it"), {"canceled"}, 0),
}


# Emails that end badly make for longer stories.
ENDS = st.sampled_from([*ENDINGS, "postpone", "bury", "bury"])


@dataclass
class Claim:
    """What a worker believes that it holds."""

    email: OutgoingEmail
    at: datetime
    is_live: bool = True


class Outbox(RuleBasedStateMachine):
    """Each step says how emails may move; the invariant checks how they moved."""

    app: Flask
    clock: Clock

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
            proofs = [links.begin(person(n), "signup") for n in range(PEOPLE)]
        self.proofs = [(proof.user_id, proof.id) for proof in proofs]
        for n in range(PEOPLE):
            self.post(n)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One rule for everything: given several, Hypothesis skips most and repeats one until the example ends."""
        # No two things happen at the same moment.
        self.clock.advance(1)
        held = ["end", "end", "crash"] if self.claims else []
        lost = ["come_back", "come_back"] if self.stale() else []
        act = st.sampled_from(
            [
                "claim",
                "work",
                "work",
                "sign_up",
                "sign_up",
                "come_late",
                "come_late",
                "operate",
                "operate",
                *held,
                *lost,
            ]
        )
        getattr(self, data.draw(act))(data)

    # Actions of the web, the workers, the relay and an operator.

    def sign_up(self, data: st.DataObject) -> None:
        self.post(
            data.draw(st.integers(0, PEOPLE - 1)),
            delay=data.draw(st.sampled_from([0, 10])),
            expires_in=data.draw(st.sampled_from([None, None, DAY])),
        )

    def post(self, n: int, *, delay: float = 0, expires_in: float | None = None) -> None:
        user_id, proof_id = self.proofs[n]
        is_active = any(mail.verify_email_id == proof_id and mail.status in ACTIVE for mail in self.seen.values())
        with self.committing():
            email_id = posting.post(
                to_address=f"mick{n}@example.com",
                user_id=user_id,
                verify_email_id=proof_id,
                dedupe_key=f"verify:{proof_id}",
                # Unique, so that the order of claims does not depend on chance.
                priority=len(self.seen),
                delay=delay,
                expires_in=expires_in,
            )
        assert (email_id is None) == is_active
        if email_id is not None:
            self.seen[email_id] = self.mails()[email_id]

    def claim(self, data: st.DataObject) -> None:
        self.take(data.draw(st.sampled_from(["ann", "ben", "cat"])), data.draw(st.integers(1, 3)))

    def take(self, worker: str, limit: int) -> list[Claim]:
        self.moves = {("queued", "sending")}
        with self.committing():
            claimed = claims.claim(worker, limit=limit)
        assert len(claimed) <= limit
        order = list(self.seen)
        taken = [Claim(email, self.clock.at) for email in sorted(claimed, key=lambda email: order.index(email.id))]
        self.claims += taken
        return taken

    def end(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(self.claims)), data.draw(ENDS))

    def come_back(self, data: st.DataObject) -> None:
        """A worker that was presumed dead continues with its email, which another may have by now."""
        self.finish(data.draw(st.sampled_from(self.stale())), data.draw(ENDS))

    def stale(self) -> list[Claim]:
        return [claim for claim in self.claims if not claim.is_live]

    def work(self, data: st.DataObject) -> None:
        """An undisturbed worker takes an email to its end."""
        for claim in self.take("dan", 1):
            self.every_promise_is_kept()
            self.finish(claim, data.draw(ENDS))

    def finish(self, claim: Claim, name: str) -> None:
        """A worker is done with an email; if it lost its lease, it writes nothing."""
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

    def crash(self, data: st.DataObject) -> None:
        """A worker dies, and forgets everything that it holds."""
        worker = data.draw(st.sampled_from([claim.email.locked_by for claim in self.claims]))
        self.claims = [claim for claim in self.claims if claim.email.locked_by != worker]

    def come_late(self, data: st.DataObject) -> None:
        """Time passes, and then perhaps the relay runs."""
        seconds = data.draw(st.sampled_from([7.0, 21.0, 61.0, 61.0, 3700.0, 2 * DAY]))
        self.clock.advance(seconds)
        if data.draw(st.sampled_from([True, True, False])):
            self.reap()

    def reap(self) -> None:
        self.moves = {("sending", "queued"), ("sending", "dead"), ("queued", "dead")}
        with self.committing():
            reaper.reap()
        now = self.mails()
        for claim in self.claims:
            was_live, claim.is_live = claim.is_live, claim.is_live and holds(claim, now[claim.email.id])
            assert claim.is_live == (was_live and self.clock.at - claim.at <= LEASE)
        for email_id, before in self.seen.items():
            if before.status == "sending" != now[email_id].status:
                assert now[email_id].in_doubt
                assert now[email_id].lease_expiries == before.lease_expiries + 1

    def operate(self, data: st.DataObject) -> None:
        """An operator, the breaker, or a person who verifies changes emails that nobody holds."""
        act = data.draw(st.sampled_from(["revive", "revive", "hurry", "cancel"]))
        known = list(self.seen)
        some = st.lists(st.sampled_from(known), min_size=1, unique=True)
        getattr(self, act)(data.draw(st.one_of(st.just(known), some)))

    def revive(self, email_ids: list[uuid.UUID]) -> None:
        self.moves = {("dead", "queued")}
        with self.committing():
            count = transitions.revive(email_ids)
        revived = [mail for mail in self.mails().values() if mail.status != self.seen[mail.id].status]
        assert count == len(revived)
        assert {(mail.attempts, mail.lease_expiries) for mail in revived} <= {(0, 0)}

    def hurry(self, email_ids: list[uuid.UUID]) -> None:
        with self.committing():
            transitions.hurry(email_ids)

    def cancel(self, email_ids: list[uuid.UUID]) -> None:
        self.moves = {("queued", "canceled")}
        with self.committing():
            proof_id = self.seen[email_ids[0]].verify_email_id
            transitions.cancel(OutgoingEmail.verify_email_id == proof_id, reason="already verified")

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
            assert mail.sent_at is None or mail.sent_at >= mail.created_at
        assert len({claim.email.id for claim in self.claims if claim.is_live}) == sum(
            holds(claim, now[claim.email.id]) for claim in self.claims
        ), "two hold one mail, or one believes so in vain"
        active = Counter(mail.dedupe_key for mail in now.values() if mail.status in ACTIVE)
        assert set(active.values()) <= {1}
        self.seen, self.moves = {email_id: now[email_id] for email_id in self.seen}, set()

    def teardown(self) -> None:
        """Whatever happened: once one worker works, every email is finished."""
        # Twice, since an email that outlived many workers waits another hour.
        for _ in range(2):
            self.clock.advance(2 * 3600)
            with self.committing():
                reaper.reap()
                claimed = claims.claim("healthy", limit=1000)
                db.session.commit()
                for email in claimed:
                    outcomes.settle(email, "250 taken")
        assert not [mail for mail in self.mails().values() if mail.status in ACTIVE]

    # Parts of the steps.

    @contextmanager
    def committing(self) -> Iterator[None]:
        with self.app.app_context():
            yield
            db.session.commit()

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
        purge_at=db_now(kinds.PURGE_AFTER),
        created_at=db_now(),
    )


# Long enough for Hypothesis to find the shortest failing story.
@pytest.mark.timeout(600)
def test_in_any_order_of_workers_crashes_and_time_no_promise_is_lost_and_none_is_kept_by_two(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The jitter of the backoff is random, but the same steps must produce the same story.
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    app.config["MAIL_MAX_ATTEMPTS"] = MAX_ATTEMPTS
    with app.app_context():
        engine = db.engine
    with Clock(engine) as clock:
        run_state_machine_as_test(
            type("OutboxOfThisApp", (Outbox,), {"app": app, "clock": clock}),
            settings=settings(
                # Each is a long story.
                max_examples=settings().max_examples // 5,
                stateful_step_count=60,
            ),
        )
