"""Rows for tests, created like the app creates them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from flask import Flask
from sqlalchemy import Engine, event, func, select, update

from webapp.accounts import signup
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import UTCDateTime, db_now
from webapp.delivery import relay, worker
from webapp.extensions import huey
from webapp.outbox import claims, due
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import OutgoingEmail

NO_PASSWORD = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"  # noqa: S105 - matches nothing


def make_signup(
    app: Flask, *, username: str = "mick19", address: str = "mick@example.com", due: bool = True, rank: int = 1
) -> uuid.UUID:
    """Sign somebody up; return the id of the promised email, which is due at once."""
    with app.app_context():
        _signup_id, email_id = signup.sign_up(
            username=username,
            full_name="",
            address=email_addresses.parse_address(address),
            password_hash=NO_PASSWORD,
            locale="en",
            rank=rank,
        )
        assert email_id is not None
        if due:
            change(app, email_id, next_attempt_at=db_now())
        return email_id


def change(app: Flask, email_id: uuid.UUID, **values: Any) -> None:
    with app.app_context():
        db.session.execute(update(OutgoingEmail).where(OutgoingEmail.id == email_id).values(**values))
        db.session.commit()


def get(app: Flask, email_id: uuid.UUID) -> OutgoingEmail:
    with app.app_context():
        return db.session.get_one(OutgoingEmail, email_id)


def attempts(app: Flask, email_id: uuid.UUID) -> list[DeliveryAttempt]:
    with app.app_context():
        return list(
            db.session.scalars(
                select(DeliveryAttempt).where(DeliveryAttempt.email_id == email_id).order_by(DeliveryAttempt.id)
            )
        )


def claim(app: Flask, worker: str = "worker", **options: Any) -> list[OutgoingEmail]:
    with app.app_context():
        claimed = list(claims.claim(worker, **options))
        db.session.commit()
        return claimed


def deliver(app: Flask, email_id: uuid.UUID) -> None:
    """Send this email as a worker does, if it is due, and no other; raise what failed."""
    with app.app_context(), before_all_others(email_id):
        is_due = db.session.scalar(select(due.is_due()).where(OutgoingEmail.id == email_id))
        tried = worker.deliver_due(1) if is_due else {}
    if failure := tried.get(email_id):
        raise failure


@contextmanager
def before_all_others(email_id: uuid.UUID) -> Iterator[None]:
    its_row = update(OutgoingEmail).where(OutgoingEmail.id == email_id)
    priority = db.session.scalar(select(OutgoingEmail.priority).where(OutgoingEmail.id == email_id))
    db.session.execute(its_row.values(priority=-1))
    db.session.commit()
    yield
    db.session.execute(its_row.values(priority=priority))
    db.session.commit()


def only_user(app: Flask) -> User:
    with app.app_context():
        return db.session.scalars(select(User)).one()


def travel(app: Flask, seconds: float) -> None:
    """Let time pass, or go back: every time in the database moves into the past, or into the future."""
    with app.app_context():
        for table in db.metadata.sorted_tables:
            # Not keys: they would collide while they are moved.
            times = [
                column for column in table.columns if isinstance(column.type, UTCDateTime) and not column.primary_key
            ]
            if times:
                db.session.execute(table.update().values({column: earlier(column, seconds) for column in times}))
        db.session.commit()


def earlier(column: Any, seconds: float) -> Any:
    if db.engine.dialect.name == "postgresql":
        return column - func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return func.strftime("%Y-%m-%d %H:%M:%f000", column, f"{-seconds:+} seconds")


def work(app: Flask) -> None:
    """Do what a consumer does in a moment: one turn of its relay, then everything in the queue."""
    with app.app_context():
        relay.Relay().turn()
    while task := huey.dequeue():
        huey.execute(task)


class Clock:
    """The database's clock, stopped until it is advanced, so that the same steps always produce the same story."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.at = datetime(2030, 1, 1, tzinfo=UTC)

    def __enter__(self) -> Self:
        event.listen(self.engine, "before_cursor_execute", self._stop, retval=True)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self.engine, "before_cursor_execute", self._stop)

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)

    def _stop(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        # The two forms of webapp.db.clock.db_now.
        stopped = statement.replace("statement_timestamp()", f"TIMESTAMPTZ '{self.at.isoformat()}'")
        return stopped.replace("'now'", f"'{self.at:%Y-%m-%d %H:%M:%S}'"), parameters
