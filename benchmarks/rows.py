"""Bulk rows, like those that the app writes."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Mapping

import psycopg
from flask import Flask
from sqlalchemy import insert, text

from webapp.accounts import tokens
from webapp.accounts.links import VerifyEmail
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import tasks
from webapp.outbox import kinds, posting
from webapp.outbox.outgoing_email import OutgoingEmail

NO_PASSWORD = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA"
CHUNK = 5000


def promise(app: Flask, count: int, *, delay: float = 0) -> list[uuid.UUID]:
    """Insert signups of `count` people: users, verifications, and emails that are due in `delay` seconds."""
    promised: list[uuid.UUID] = []
    with app.app_context():
        key_id = tokens.newest_key()
        while len(promised) < count:
            promised += _promise(min(CHUNK, count - len(promised)), key_id, delay)
        db.session.commit()
    return promised


def _promise(count: int, key_id: str, delay: float) -> list[uuid.UUID]:
    names = [f"user{uuid.uuid4().hex[:12]}" for _ in range(count)]
    people = [
        {
            "username": name,
            "username_key": name,
            "full_name": "",
            "email": f"{name}@example.com",
            "email_key": f"{name}@example.com",
            "password_hash": NO_PASSWORD,
        }
        for name in names
    ]
    times = {"purge_at": db_now(kinds.PURGE_AFTER), "created_at": db_now()}
    added = insert(User).values(times).returning(User.id, sort_by_parameter_order=True)
    user_ids = db.session.scalars(added, people).all()
    proofs = [
        {"id": uuid.uuid4(), "user_id": user_id, "email_key": f"{name}@example.com"}
        for user_id, name in zip(user_ids, names, strict=True)
    ]
    kind = {"purpose": "signup", "key_id": key_id, "created_at": db_now()}
    db.session.execute(insert(VerifyEmail).values(kind), proofs)
    mails: list[dict[str, object]] = []
    email_ids = [uuid.uuid4() for _ in proofs]
    for proof, email_id in zip(proofs, email_ids, strict=True):
        mails.append(
            {
                "id": email_id,
                "message_id": f"<{email_id}@signup.example>",
                "dedupe_key": f"verify:{proof['id']}",
                "user_id": proof["user_id"],
                "verify_email_id": proof["id"],
                "to_address": proof["email_key"],
                "budget": f"signup:{proof['email_key']}",
                "locale": "en",
                "max_attempts": 10,
                "priority": posting.VERIFICATION_PRIORITY,
            }
        )
    times = {"created_at": db_now(), "next_attempt_at": db_now(delay), "expires_at": db_now(kinds.PURGE_AFTER)}
    db.session.execute(insert(OutgoingEmail).values(times), mails)
    return email_ids


def hint(app: Flask, promised: list[uuid.UUID], *, delay: float) -> None:
    """Hint these emails, as the web does."""
    with app.app_context():
        for email_id in promised:
            tasks.deliver_later(email_id, delay)


def reader(settings: Mapping[str, str]) -> psycopg.Connection | sqlite3.Connection:
    """Return a connection that only reads: the app's own would lock an SQLite database."""
    url = settings["DATABASE_URL"]
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    return psycopg.connect(url, autocommit=True)


def count_sent(connection: psycopg.Connection | sqlite3.Connection) -> int:
    (sent,) = connection.execute("SELECT count(*) FROM outgoing_emails WHERE status = 'sent'").fetchone() or (0,)
    return int(sent)


def have_sent(connection: psycopg.Connection | sqlite3.Connection, count: int) -> bool:
    """Return whether `count` emails were sent. Counts them only once that many were tried, since counting is slow."""
    (tried,) = connection.execute("SELECT coalesce(max(id), 0) FROM delivery_attempts").fetchone() or (0,)
    return int(tried) >= count and count_sent(connection) >= count


def analyze(app: Flask) -> None:
    """Update the database's statistics, as its autovacuum would do eventually."""
    with app.app_context():
        db.session.execute(text("ANALYZE"))
        db.session.commit()
