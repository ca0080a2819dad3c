"""Rows for tests, made as the app makes them."""

from __future__ import annotations

import uuid
from typing import Any

from flask import Flask
from sqlalchemy import select, update

from webapp import outbox, signup, users
from webapp.attempts import DeliveryAttempt
from webapp.clock import db_now
from webapp.extensions import db
from webapp.outbox import OutgoingEmail
from webapp.users import User

NO_PASSWORD = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"  # noqa: S105 - matches nothing


def make_signup(
    app: Flask, *, username: str = "mick19", address: str = "mick@example.com", due: bool = True
) -> uuid.UUID:
    """Sign somebody up; return the id of the mail that was promised, due at once."""
    with app.app_context():
        _user, email = signup.sign_up(
            username=username,
            full_name="",
            address=users.parse_address(address),
            password_hash=NO_PASSWORD,
            locale="en",
        )
        if due:
            change(app, email.id, next_attempt_at=db_now())
        return email.id


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
        claimed = list(outbox.claim(worker, **options))
        db.session.commit()
        return claimed


def only_user(app: Flask) -> User:
    with app.app_context():
        return db.session.scalars(select(User)).one()
