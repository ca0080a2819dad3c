"""Signals: other code learns who was verified, changed or deleted, and may undo it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from blinker import NamedSignal
from flask import Flask
from sqlalchemy import delete, func, select, text, update

from harness.processes import wait_until
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.accounts.test_codes import code_in, type_code
from tests.accounts.test_email_change import CONFIRM, NEW, OLD, PUT_BACK, another_member, asked, change
from tests.accounts.test_password_change import forget, reset_link
from tests.factories import only_user, travel
from tests.pages.test_verify import everything
from tests.test_operations import flask_users
from tests.test_retention import prune
from webapp import signals
from webapp.accounts import account
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now

Send = Callable[[], None]
Step = Callable[[], Any]

ALL = (signals.user_verified, signals.email_changed, signals.user_renamed, signals.user_deleted)


@pytest.fixture
def told(app: Flask) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The signals that were sent: the name and arguments of each."""
    heard: list[tuple[str, dict[str, Any]]] = []

    def listener(signal: NamedSignal) -> Callable[..., None]:
        def hear(sender: Flask, user: User, **values: Any) -> None:
            assert sender is app
            assert user.id == values["user_id"]
            # It is in the database already, as seen from this transaction.
            assert db.session.scalar(select(User.username).where(User.id == user.id)) == user.username
            heard.append((signal.name, values))

        return hear

    listeners = [(signal, listener(signal)) for signal in ALL]
    for signal, hear in listeners:
        signal.connect(hear, sender=app)
    yield heard
    for signal, hear in listeners:
        signal.disconnect(hear, sender=app)


@pytest.fixture
def sent(visitor: Visitor, send_due: Send, smtp: Server) -> str:
    """The link that `visitor` got for signing up."""
    visitor.sign_up()
    send_due()
    return smtp.mails[-1].link


def id_of(app: Flask, name: str = "mick19") -> int:
    with app.app_context():
        return db.session.scalars(select(User.id).where(User.username == name)).one()


def by_link(visitor: Visitor, _other: Visitor, link: str, _send: Send, _smtp: Server) -> None:
    visitor.open(link)
    visitor.submit("/verify")


def by_code(visitor: Visitor, _other: Visitor, _link: str, _send: Send, smtp: Server) -> None:
    type_code(visitor, code_in(smtp.mails[-1]))


def by_password(_visitor: Visitor, other: Visitor, link: str, _send: Send, _smtp: Server) -> None:
    other.open(link)
    other.submit("/verify", password=PASSWORD)


def by_a_new_password(_visitor: Visitor, other: Visitor, link: str, _send: Send, _smtp: Server) -> None:
    other.open(link)
    other.submit("/verify", new_password="a new long password")


def by_a_reset(_visitor: Visitor, other: Visitor, _link: str, send_due: Send, smtp: Server) -> None:
    forget(other)
    send_due()
    other.open(reset_link(smtp))
    other.submit("/reset", password="a new long password")


@pytest.mark.parametrize("way", [by_link, by_code, by_password, by_a_new_password, by_a_reset])
def test_each_way_of_being_verified_is_told_once(
    app: Flask,
    visitor: Visitor,
    another_visitor: Visitor,
    sent: str,
    send_due: Send,
    smtp: Server,
    told: list[Any],
    way: Callable[..., None],
) -> None:
    way(visitor, another_visitor, sent, send_due, smtp)
    assert only_user(app).is_email_verified
    assert told == [("user-verified", {"user_id": id_of(app)})]


def test_of_rivals_the_one_who_is_verified_is_told(
    app: Flask, visitor: Visitor, another_visitor: Visitor, sent: str, told: list[Any]
) -> None:
    another_visitor.sign_up(username="ann")
    another_visitor.open(sent)
    another_visitor.submit("/verify")
    assert told == [("user-verified", {"user_id": id_of(app, "ann")})]


def test_whom_an_operator_makes_is_told(app: Flask, told: list[Any]) -> None:
    made = flask_users(app, "create", OLD, "--generate", "--admin")
    assert made.exit_code == 0
    assert told == [("user-verified", {"user_id": id_of(app, "mick")})]
    # What someone may do under /ops is not a change of the account.
    assert flask_users(app, "demote", OLD).exit_code == 0
    assert len(told) == 1


def test_a_name_that_was_taken_meanwhile_is_told_as_the_one_that_replaced_it(
    app: Flask, visitor: Visitor, sent: str, send_due: Send, smtp: Server, told: list[Any]
) -> None:
    another = Visitor("http://signup.example", app)
    another.sign_up(username="mick19", email="ann@example.com")
    send_due()
    type_code(another, code_in(smtp.to("ann@example.com")[-1]))
    told.clear()
    visitor.open(sent)
    visitor.submit("/verify")
    assert told == []
    visitor.submit("/verify", username="mick20")
    values = {"user_id": id_of(app, "mick20")}
    assert told == [("user-verified", values), ("user-renamed", {**values, "former": "mick19", "username": "mick20"})]


def test_another_name_is_told_and_only_that(app: Flask, member: Visitor, told: list[Any]) -> None:
    member.open("/account/profile")
    member.submit("/account/profile", username="mick19", full_name="Mick")
    assert told == []
    member.open("/account/profile")
    member.submit("/account/profile", username="Zoë", full_name="Mick")
    assert told == [("user-renamed", {"user_id": id_of(app, "Zoë"), "former": "mick19", "username": "Zoë"})]


def test_another_address_is_told_by_link_by_code_and_when_it_is_put_back(
    app: Flask, member: Visitor, send_due: Send, smtp: Server, told: list[Any]
) -> None:
    undo = change(member, send_due, smtp)
    there = {"user_id": id_of(app), "former": OLD, "email": NEW}
    assert told == [("email-changed", there)]
    asked(member, send_due, smtp, "third@example.com")
    member.open("/account/email")
    member.submit("/account/email/code", code=code_in(smtp.mails[-1]))
    assert told[1:] == [("email-changed", {**there, "former": NEW, "email": "third@example.com"})]
    member.open(undo.link)
    member.submit(PUT_BACK)
    assert told[2:] == [("email-changed", {**there, "former": "third@example.com", "email": OLD})]


def test_the_end_of_an_account_is_told_and_of_a_signup_nobody_verified_is_not(
    app: Flask, member: Visitor, told: list[Any]
) -> None:
    user_id = id_of(app)
    for name in ("ann", "ben"):
        Visitor("http://signup.example", app).sign_up(username=name, email=f"{name}@example.com")
    assert flask_users(app, "delete", "ben", "--yes").exit_code == 0
    travel(app, 8 * 86400)
    prune(app)
    assert only_user(app).id == user_id
    assert told == []
    member.open("/account/delete")
    member.submit("/account/delete", password=PASSWORD)
    assert told == [("user-deleted", {"user_id": user_id})]


# Receivers that fail.


def refuses(_app: Flask, **_values: Any) -> None:
    raise LookupError("our billing isn't responding")


def writes(_app: Flask, user_id: int, **_values: Any) -> None:
    db.session.add(AuditEvent(at=db_now(), action="billed", user_id=user_id))


def commits(_app: Flask, **_values: Any) -> None:
    db.session.commit()


def rolls_back(_app: Flask, **_values: Any) -> None:
    db.session.rollback()


def ends_the_account(_app: Flask, user: User, **_values: Any) -> None:
    account.end(user)


def deletes_the_user(_app: Flask, user: User, **_values: Any) -> None:
    db.session.delete(user)


def deletes_the_row(_app: Flask, user_id: int, **_values: Any) -> None:
    db.session.execute(delete(User).where(User.id == user_id))


def writes_rubbish(_app: Flask, **_values: Any) -> None:
    db.session.add(AuditEvent(at=db_now()))


@contextmanager
def connected(app: Flask, signal: NamedSignal, *receivers: Callable[..., Any]) -> Iterator[None]:
    for receiver in receivers:
        signal.connect(receiver, sender=app)
    yield
    for receiver in receivers:
        signal.disconnect(receiver, sender=app)


def confirm(visitor: Visitor, link: str) -> None:
    visitor.open(link)
    visitor.submit("/verify")


@pytest.mark.parametrize(
    "bad", [refuses, commits, rolls_back, ends_the_account, deletes_the_user, deletes_the_row, writes_rubbish]
)
def test_what_a_receiver_breaks_did_not_happen_and_works_once_it_is_mended(
    app: Flask, visitor: Visitor, sent: str, caplog: pytest.LogCaptureFixture, bad: Callable[..., None]
) -> None:
    before = everything(app)
    with connected(app, signals.user_verified, writes, bad):
        confirm(visitor, sent)
    assert visitor.page.status_code == 500
    assert "We couldn't finish that Nothing was changed. Please go back and try again in a minute." in visitor.text
    assert everything(app) == before
    (line,) = [record.msg for record in caplog.records if "receiver_failed" in str(record.msg)]
    assert isinstance(line, dict)
    assert line["receiver"] == f"tests.test_signals.{bad.__name__}"
    assert line["signal"] == "user-verified"
    assert line["exc_info"] or line["exception"]
    with connected(app, signals.user_verified, writes):
        confirm(visitor, sent)
    assert visitor.path == "/account"
    with app.app_context():
        assert db.session.scalar(select(func.count()).where(AuditEvent.action == "billed")) == 1


def changes(tables: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Leave out the sessions, which record that somebody entered the password."""
    return {name: rows for name, rows in tables.items() if name != "user_sessions"}


def test_each_kind_of_change_is_undone(
    app: Flask, member: Visitor, send_due: Send, smtp: Server, caplog: pytest.LogCaptureFixture
) -> None:
    undo = change(member, send_due, smtp)
    link = asked(member, send_due, smtp, "third@example.com").link
    another_member(app, send_due, smtp, "ann", "ann@example.com")
    before = everything(app)

    def steps() -> Iterator[tuple[NamedSignal, str, dict[str, Any]]]:
        member.open("/account/profile")
        yield signals.user_renamed, "/account/profile", {"username": "zoe", "full_name": "Zoe"}
        member.open(link)
        yield signals.email_changed, CONFIRM, {}
        member.open(undo.link)
        yield signals.email_changed, PUT_BACK, {}
        member.open("/account/delete")
        yield signals.user_deleted, "/account/delete", {"password": PASSWORD}

    for signal, action, typed in steps():
        with connected(app, signal, refuses):
            member.submit(action, **typed)
        assert member.page.status_code == 500, action
        assert changes(everything(app)) == changes(before), action
    assert caplog.text.count("receiver_failed") == 4
    # Whoever asked is still signed in.
    member.open("/account")
    assert member.path == "/account"


def test_who_is_to_be_deleted_may_be_deleted_by_a_receiver_too(app: Flask, member: Visitor) -> None:
    with connected(app, signals.user_deleted, deletes_the_row):
        member.open("/account/delete")
        member.submit("/account/delete", password=PASSWORD)
    assert member.path == "/login"
    with app.app_context():
        assert db.session.scalar(select(func.count(User.id))) == 0


def test_a_receiver_may_try_something_in_a_savepoint(app: Flask, visitor: Visitor, sent: str) -> None:
    def tries(_app: Flask, user: User, **_values: Any) -> None:
        with db.session.begin_nested():
            db.session.execute(update(User).where(User.id == user.id).values(full_name="Mick"))

    with connected(app, signals.user_verified, tries):
        confirm(visitor, sent)
    assert visitor.path == "/account"
    assert only_user(app).full_name == "Mick"


def test_a_command_says_in_one_line_that_nothing_was_changed(app: Flask) -> None:
    before = everything(app)
    with connected(app, signals.user_verified, refuses):
        made = flask_users(app, "create", OLD, "--generate")
    assert made.exit_code == 4
    assert made.stdout == ""
    assert "nothing was changed: tests.test_signals.refuses: LookupError: our billing isn't responding" in made.stderr
    assert everything(app) == before


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
def test_postgres_ends_the_transaction_of_a_receiver_that_hangs(
    app: Flask,
    visitor: Visitor,
    sent: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(signals, "SLOW_SECONDS", 0.1)

    def hangs(_app: Flask, **_values: Any) -> None:
        # Shorter only from here on: a busy machine may take as long between two statements of our own.
        db.session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '300ms'"))
        pid = db.session.scalar(select(func.pg_backend_pid()))
        with psycopg.connect(environ["DATABASE_URL"], autocommit=True) as looking:
            is_there = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: looking.execute(is_there, [pid]).fetchone() == (0,), "the transaction goes on")

    before = everything(app)
    caplog.set_level(logging.INFO)
    with connected(app, signals.user_verified, hangs):
        confirm(visitor, sent)
    assert visitor.page.status_code == 503
    assert everything(app) == before
    assert "receiver_slow" in caplog.text
    assert "hangs" in caplog.text
    confirm(visitor, sent)
    assert visitor.path == "/account"
