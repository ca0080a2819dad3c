"""Commit, then schedule: the usual way, and what ours is compared with.

The comparison is fair: it schedules only after the commit, retries ten times, and lets its workers finish on SIGTERM.
"""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage
from pathlib import Path

from flask import Flask, request
from flask.typing import ResponseReturnValue
from huey import RedisHuey, SqliteHuey
from sqlalchemy import Column, DateTime, Integer, MetaData, String, Table, create_engine, func, insert, select, update

DELAY = int(os.environ.get("VERIFY_EMAIL_DELAY", "2"))
TIMEOUT = int(os.environ.get("MAIL_TIMEOUT", "3"))

users = Table(
    "users",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("email", String(254), nullable=False),
    Column("created_at", DateTime(timezone=True), server_default=func.current_timestamp()),
    Column("sent_at", DateTime(timezone=True)),
)


def url() -> str:
    return os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")


engine = create_engine(url(), pool_pre_ping=True)
if "REDIS_URL" in os.environ:
    huey = RedisHuey("naive", url=os.environ["REDIS_URL"], results=False)
else:
    queue = Path(engine.url.database or "").with_name("app-queue.db")
    huey = SqliteHuey("naive", filename=str(queue), results=False)

app = Flask(__name__)


@app.get("/signup")
def show() -> str:
    return '<form action="/signup" method="post"></form>'


@app.post("/signup")
def sign_up() -> ResponseReturnValue:
    with engine.begin() as connection:
        user_id = connection.execute(insert(users).values(email=request.form["email"]).returning(users.c.id)).scalar()
    send_verification.schedule(args=(user_id,), delay=DELAY)
    return "", 303


@huey.task(retries=10, retry_delay=1)
def send_verification(user_id: int) -> None:
    with engine.connect() as connection:
        address = connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "no-reply@signup.example", address, "Verify your address"
    message.set_content(f"http://signup.example/verify/{user_id}")
    with smtplib.SMTP("127.0.0.1", int(os.environ["MAIL_PORT"]), timeout=TIMEOUT) as smtp:
        smtp.send_message(message)
    with engine.begin() as connection:
        connection.execute(update(users).where(users.c.id == user_id).values(sent_at=func.current_timestamp()))


if __name__ == "__main__":
    users.metadata.create_all(engine)
