"""The same job for every rival, written as in their manuals: load, insert, render, build, send, mark, commit."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from flask import Flask, render_template
from flask_mail import Mail, Message
from flask_sqlalchemy import SQLAlchemy
from itsdangerous import URLSafeTimedSerializer
from sqlalchemy import DateTime, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class SentMail(Base):
    __tablename__ = "sent_mails"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    sent_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


app = Flask(__name__, template_folder=os.environ["TEMPLATES"])
app.config.update(
    SECRET_KEY=os.environ["SECRET_KEY"],
    SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"),
    MAIL_SERVER=os.environ["MAIL_SERVER"],
    MAIL_PORT=int(os.environ["MAIL_PORT"]),
    MAIL_USE_SSL="MAIL_USE_SSL" in os.environ,
    MAIL_DEFAULT_SENDER="no-reply@signup.example",
)
db = SQLAlchemy(app, model_class=Base)
mail = Mail(app)
signer = URLSafeTimedSerializer(os.environ["SECRET_KEY"])


def send(user_id: int) -> None:
    with app.app_context():
        user = db.session.get_one(User, user_id)
        sent = SentMail(user_id=user.id)
        db.session.add(sent)
        link = f"http://signup.example/verify/{signer.dumps(user.id)}"
        context = {"address": user.email, "code": "123 456", "link": link}
        mail.send(
            Message(
                subject="Is this your address?",
                recipients=[user.email],
                body=render_template("mail.txt", **context),
                html=render_template("mail.html", **context),
            )
        )
        sent.sent_at = datetime.now(UTC)
        db.session.commit()
