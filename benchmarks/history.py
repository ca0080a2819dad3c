"""A database with a past: a million emails in every state, each with its attempt, and two hundred that are due."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from sqlalchemy import event, text

from webapp.db.base import db

DUE = 200

# A page shows 50 emails, so even a small past has more dead ones.
DEAD = 60

# Of a hundred emails one waits, one is dead, two were canceled, and the others were sent, evenly over the retention.
MAILS = text("""
    INSERT INTO outgoing_emails (id, message_id, dedupe_key, to_address, budget, template, locale, priority, status,
                                 attempts, max_attempts, next_attempt_at, last_smtp_code, last_error_class,
                                 created_at, expires_at, sent_at, finished_at)
    SELECT gen_random_uuid(), '<' || n || '@signup.example>', 'k' || n, 'n' || n || '@example.com',
           'signup:n' || n || '@example.com', 'verify_email', 'en', 0, state,
           CASE WHEN state IN ('sent', 'dead') THEN 1 ELSE 0 END, 10,
           CASE WHEN state = 'queued' THEN clock_timestamp() + interval '1 day' ELSE at END,
           CASE state WHEN 'sent' THEN 250 WHEN 'dead' THEN 550 END,
           CASE state WHEN 'dead' THEN 'Refused' WHEN 'canceled' THEN 'Canceled' END,
           at, CASE WHEN state = 'queued' THEN clock_timestamp() ELSE at END + interval '7 days',
           CASE WHEN state = 'sent' THEN at + interval '11 seconds' END,
           CASE WHEN state <> 'queued' THEN at + interval '11 seconds' END
    FROM (SELECT n, clock_timestamp() - n * interval '90 days' / :rows AS at,
                 CASE WHEN n % 100 = 0 THEN 'queued' WHEN n % :dead_each = 1 THEN 'dead'
                      WHEN n % 100 < 4 THEN 'canceled' ELSE 'sent' END AS state
          FROM generate_series(1, :rows) AS n) AS mails
""")
ATTEMPTS = text("""
    INSERT INTO delivery_attempts (email_id, started_at, finished_at, outcome, phase, code, reply, worker)
    SELECT id, finished_at - interval '50 ms', finished_at, CASE status WHEN 'sent' THEN 'sent' ELSE 'failed' END,
           CASE status WHEN 'sent' THEN 'dot' ELSE 'recipient' END, last_smtp_code, 'an answer', 'somewhere:1:Worker-1'
    FROM outgoing_emails WHERE status IN ('sent', 'dead') ORDER BY finished_at
""")
DUE_NOW = text("""
    UPDATE outgoing_emails SET next_attempt_at = clock_timestamp() - interval '1 minute'
    WHERE id IN (SELECT id FROM outgoing_emails WHERE status = 'queued' ORDER BY created_at LIMIT :due)
""")


def write(app: Flask, rows: int) -> None:
    """Fill an empty PostgreSQL database."""
    with app.app_context():
        db.session.execute(MAILS, {"rows": rows, "dead_each": min(100, rows // DEAD)})
        db.session.execute(ATTEMPTS)
        db.session.execute(DUE_NOW, {"due": DUE})
        db.session.commit()
        # As autovacuum would do eventually.
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


@contextmanager
def statements(app: Flask) -> Iterator[dict[str, Any]]:
    """Collect the statements that a block executes, each with the parameters of its last execution."""
    asked: dict[str, Any] = {}

    def collect(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked[statement] = parameters

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", collect)
    yield asked
    event.remove(engine, "before_cursor_execute", collect)


def plan(app: Flask, statement: str, parameters: Any) -> str:
    """Return the query plan of this statement. It is executed, then rolled back."""
    with app.app_context(), db.engine.connect() as connection:
        lines = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, COSTS OFF) {statement}", parameters).scalars().all()
        connection.rollback()
    return "\n".join(lines)
