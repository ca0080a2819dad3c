"""What is deleted after a while, and what never is."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import delete, func, insert, select, text, update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.cli.test_cli import findings, flask_mail
from tests.factories import attempts, change, claim, get, make_signup, travel, work
from webapp import retention
from webapp.accounts import account
from webapp.accounts.codes import CodeTry
from webapp.accounts.links import VerifyEmail
from webapp.accounts.sessions import UserSession
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now
from webapp.delivery import heartbeats, relay
from webapp.outbox import outcomes
from webapp.outbox.attempts import Failure
from webapp.outbox.outgoing_email import OutgoingEmail

DAY = 86400.0


def count(app: Flask, model: type) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).select_from(model)) or 0


def prune(app: Flask) -> None:
    result = flask_mail(app, "prune", "--yes")
    assert result.exit_code == 0, result.output


def test_a_signup_that_nobody_verified_vanishes_seven_days_after_its_last_mail(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    travel(app, 6 * DAY)
    work(app)
    assert len(smtp.mails) == 1
    travel(app, 6 * DAY)
    prune(app)
    assert count(app, User) == 1
    travel(app, 1.1 * DAY)
    prune(app)
    assert count(app, User) == 0
    # The email's history is kept longer, without its user.
    row = get(app, email_id)
    assert (row.status, row.user_id) == ("sent", None)


def test_users_from_before_and_the_verified_never_vanish(
    visitor: Visitor, app: Flask, smtp: Server, send_due: Callable[[], None]
) -> None:
    visitor.sign_up()
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    make_signup(app, username="ann", address="ann@example.com")
    with app.app_context():
        # As the migration leaves them.
        db.session.execute(update(User).where(User.username == "ann").values(purge_at=None))
        db.session.commit()
    travel(app, 400 * DAY)
    prune(app)
    assert count(app, User) == 2
    visitor.open("/login")
    visitor.submit("/login", identifier="mick19", password=PASSWORD)
    assert visitor.path == "/account"


def test_a_mail_that_waits_is_canceled_with_its_user_and_one_being_sent_is_left(app: Flask) -> None:
    waiting = make_signup(app)
    with app.app_context():
        db.session.execute(update(User).values(purge_at=User.created_at))
        db.session.commit()
    (email,) = claim(app)
    prune(app)
    assert count(app, User) == 1
    with app.app_context():
        outcomes.requeue(email, Failure("Aborted", "we are stopping"))
        db.session.commit()
    prune(app)
    assert count(app, User) == 0
    assert get(app, waiting).status == "canceled"


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
@pytest.mark.parametrize("verified", [False, True], ids=["signup", "account"])
def test_people_can_go_whatever_order_a_restored_dump_left_their_tables_in(app: Flask, *, verified: bool) -> None:
    waiting = make_signup(app)
    with app.app_context():
        while sorted(TRIGGERS, key=lambda table: db.session.scalar(FIRES_AS, {"table": table}) or "") != TRIGGERS:
            for statement in AGAIN:
                db.session.execute(text(statement))
        db.session.execute(update(User).values(purge_at=User.created_at))
        db.session.commit()
        if verified:
            account.end(db.session.scalars(select(User)).one())
    prune(app)
    assert count(app, User) == count(app, VerifyEmail) == 0
    assert get(app, waiting).status == "canceled"


# PostgreSQL's triggers on these tables fire by name when a user is deleted; in this order it once failed.
TRIGGERS = ["outgoing_emails", "verify_emails"]
FIRES_AS = text(
    "SELECT min(tgname) FROM pg_trigger WHERE tgrelid = 'users'::regclass AND tgconstrrelid = (:table)::regclass"
)
AGAIN = [
    f"ALTER TABLE {table} DROP CONSTRAINT fk_{table}_user_id, ADD CONSTRAINT fk_{table}_user_id"
    f" FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE {action}"
    for table, action in (("outgoing_emails", "SET NULL"), ("verify_emails", "CASCADE"))
]


def test_old_mails_audit_sessions_and_tries_are_forgotten(
    visitor: Visitor, app: Flask, smtp: Server, send_due: Callable[[], None]
) -> None:
    visitor.sign_up()
    visitor.submit("/signup/code", code="000000")
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    with app.app_context():
        email_id = db.session.scalars(select(OutgoingEmail.id)).one()
    travel(app, 89 * DAY)
    prune(app)
    assert [count(app, model) for model in (OutgoingEmail, UserSession, CodeTry)] == [1, 1, 1]
    travel(app, 2 * DAY)
    prune(app)
    assert [count(app, model) for model in (OutgoingEmail, UserSession, CodeTry)] == [0, 0, 0]
    assert attempts(app, email_id) == []
    with app.app_context():
        # Only that somebody pruned.
        assert set(db.session.scalars(select(AuditEvent.action))) == {"pruned"}
    assert findings(app) == ["no_worker"]


def test_prune_says_how_many_first_and_asks(app: Flask) -> None:
    make_signup(app)
    travel(app, 8 * DAY)
    result = flask_mail(app, "prune", input="n\n")
    assert result.exit_code == 1
    assert "signups\t1" in result.stdout
    assert count(app, User) == 1
    prune(app)
    assert count(app, User) == 0


def test_much_is_forgotten_in_batches(app: Flask) -> None:
    make_signup(app)
    with app.app_context():
        user = db.session.scalars(select(User)).one()
        columns = [column.key for column in User.__table__.columns if column.key != "id"]
        row = {name: getattr(user, name) for name in columns}
        db.session.execute(insert(User), [row] * (2 * retention.BATCH))
        db.session.commit()
    travel(app, 8 * DAY)
    with app.app_context():
        batches = list(retention.prune())
    assert batches == [("signups", retention.BATCH), ("signups", retention.BATCH), ("signups", 1)]


def test_each_worker_forgets_by_itself(app: Flask) -> None:
    make_signup(app)
    travel(app, 8 * DAY)
    ours = relay.Relay()
    with app.app_context():
        ours.turn()
    assert count(app, User) == 1
    (prune,) = [job for job in ours.jobs if job.do is relay.prune]
    prune.due_at = time.monotonic()
    with app.app_context():
        ours.turn()
    assert count(app, User) == 0
    assert prune.due_at > time.monotonic() + relay.PRUNE_SECONDS / 2
    with app.app_context():
        heartbeats.leave(heartbeats.NAME)
        db.session.commit()


def test_a_user_that_vanishes_while_its_mail_is_sent_does_no_harm(app: Flask, smtp: Server) -> None:
    email_id = make_signup(app)
    (email,) = claim(app)
    with app.app_context():
        db.session.execute(delete(User))
        db.session.commit()
        outcomes.settle(email, "250 ok")
        db.session.commit()
    assert get(app, email_id).status == "sent"
    again = make_signup(app, username="ann", address="ann@example.com")
    change(app, again, user_id=None, verify_email_id=None, next_attempt_at=db_now(-5))
    work(app)
    assert get(app, again).status == "canceled"
    assert smtp.mails == []
