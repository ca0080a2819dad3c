"""Finding people by what is known about them."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from sqlalchemy import insert, select, text, update

from tests.accounts.test_usernames import somebody
from tests.factories import make_signup
from webapp.accounts.support import search
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now


@pytest.fixture
def people(app: Flask) -> dict[str, int]:
    """A few people, by their usernames."""
    with app.app_context():
        for username, address, full_name in (
            ("mick19", "mick@example.com", "Mick Müller"),
            ("mick", "other@example.com", ""),
            ("zoe", "zoe+news@example.com", "Émilie 100% Zoë"),
            ("somchai", "somchai@xn--mnchen-3ya.example", "สมชาย ใจดี"),
        ):
            make_signup(app, username=username, address=address)
            db.session.execute(update(User).where(User.username == username).values(full_name=full_name))
            db.session.commit()
        return {user.username: user.id for user in db.session.query(User)}


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("mick", {"mick", "mick19"}),
        (" MICK19 ", {"mick19"}),
        ("ick", {"mick", "mick19"}),
        ("Mick Müller", {"mick19"}),
        ("müll", {"mick19"}),
        ("Émilie", {"zoe"}),
        ("100%", {"zoe"}),
        ("Zoe+News@EXAMPLE.com", {"zoe"}),
        ("Zoe <zoe+news@example.com>", {"zoe"}),
        ("somchai@münchen.example", {"somchai"}),
        ("ใจ", {"somchai"}),
        ("zoe@example.com", set()),
        ("%", {"zoe"}),
        ("_", set()),
        ("/", set()),
        ("\0", set()),
        ("", set()),
        ("x" * 5000, set()),
        ("9" * 50, set()),
    ],
)
def test_people_are_found_by_username_address_and_part_of_a_name(
    app: Flask, people: dict[str, int], typed: str, found: set[str]
) -> None:
    with app.app_context():
        assert search.find(typed) == {people[name] for name in found}


def test_people_are_found_by_number(app: Flask, people: dict[str, int]) -> None:
    with app.app_context():
        assert people["zoe"] in search.find(str(people["zoe"]))


def test_of_many_who_are_alike_some_are_found(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    # Twenty instead of hundreds are more than may be found.
    monkeypatch.setattr(search, "FOUND_MAX", 3)
    fill(app, 20)
    with app.app_context():
        assert 3 <= len(search.find("user")) <= 12


def test_older_people_are_found_by_the_beginning_of_a_name_and_newer_ones_by_any_part(
    app: Flask, people: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Let some of these few count as old.
    monkeypatch.setattr(search, "NEWEST", 2)
    with app.app_context():
        assert search.find("müller") == set()
        assert search.find("mick m") == {people["mick19"]}
        assert search.find("ใจ") == {people["somchai"]}


def test_nobody_is_looked_for_in_all_rows(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(app, 2000)
    questions: list[Any] = []
    # Nearly all of these count as old.
    monkeypatch.setattr(search, "NEWEST", 10)
    with app.app_context():
        db.session.execute(text("ANALYZE users"))
        scalars = db.session.scalars

        def note(query: Any) -> Any:
            questions.append(query)
            return scalars(query)

        # The statements that it really executes, to look at their plans.
        monkeypatch.setattr(db.session, "scalars", note)
        search.find("7")
        explain = "EXPLAIN" if db.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        plans = [
            str(db.session.execute(text(f"{explain} {compiled}")).all())
            for query in questions
            for compiled in [query.compile(db.engine, compile_kwargs={"literal_binds": True})]
        ]
    assert len(plans) == 6
    # The last one scans only the newest users, by number.
    assert not [plan for plan in plans[:5] if "Seq Scan" in plan or "SCAN" in plan]
    assert "ix_users_email_key" in plans[0]
    assert "ix_users_username_key" in plans[1]
    assert "ix_users_username_key" in plans[3]
    assert "ix_users_full_name" in plans[4]


def fill(app: Flask, count: int) -> None:
    with app.app_context():
        now = db.session.scalars(select(db_now())).one()
        people = [{**somebody(number, now), "full_name": f"User Number {number}"} for number in range(count)]
        db.session.execute(insert(User), people)
        db.session.commit()
