"""Usernames: which may be chosen, and which look like another one."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import insert, select, text, update

from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from webapp.accounts import users
from webapp.accounts.identifiers import usernames
from webapp.accounts.users import User
from webapp.db.base import db
from webapp.db.clock import db_now

TAKEN = "That username is taken"


def hold(app: Flask, username: str) -> None:
    """Let someone else have this username."""
    with app.app_context():
        user = User(full_name="", email="other@example.com", email_key="other@example.com", password_hash="x")
        users.name(user, username)
        user.email_verified_at = user.created_at = db_now()
        db.session.add(user)
        db.session.commit()


@pytest.mark.parametrize(
    "name",
    [
        "victim\u3164",
        "victim\ufe0f",
        "vic\u034ftim",
        "victim\u115f",
        "vic\u180btim",
        "victim\u17b4",
        "\u3164\u3164\u3164",
    ],
)
def test_a_username_holds_nothing_that_cannot_be_seen(app: Flask, visitor: Visitor, name: str) -> None:
    assert visitor.sign_up(username=name).status_code == 422
    assert "Please use only letters, digits, dots, hyphens and underscores." in visitor.text


@pytest.mark.parametrize("name", ["...", "_", "-.-"])
def test_a_username_has_a_letter_or_a_digit(visitor: Visitor, name: str) -> None:
    assert visitor.sign_up(username=name).status_code == 422
    assert "Please use at least one letter or digit." in visitor.text


@pytest.mark.parametrize("name", ["vic@tim", "vic\u202etim", "vic\u2066tim", "\u0301victim", "vic\u200dtim"])
def test_a_username_turns_nothing_around_and_is_no_address(visitor: Visitor, name: str) -> None:
    assert visitor.sign_up(username=name).status_code == 422


@pytest.mark.parametrize(
    "name", ["สมชาย", "กำธร", "अनुष्का", "محمد", "анна", "Ελένη", "山田太郎", "김철수", "Zoë", "x_y-z.1"]
)
def test_people_of_all_scripts_have_names(visitor: Visitor, name: str) -> None:
    assert visitor.sign_up(username=name).url.path == "/signup/sent"


@pytest.mark.parametrize(
    ("held", "chosen"),
    [
        ("victim", "vісtіm"),  # Cyrillic, like the next two
        ("paypal", "раураl"),
        ("BOBA", "ВОВА"),
        ("paypal", "paypaI"),
        ("Mick", "MlCK"),
        ("user10", "userlO"),
        ("modern", "modem"),
        ("вова", "ВОВА"),
    ],
)
def test_a_username_that_looks_like_one_that_is_held_is_taken(
    app: Flask, visitor: Visitor, held: str, chosen: str
) -> None:
    hold(app, held)
    assert visitor.sign_up(username=chosen).status_code == 422
    assert TAKEN in visitor.text


@pytest.mark.parametrize(("held", "chosen"), [("anna", "анна"), ("nick", "vick"), ("user1", "user2"), ("vera", "vеnа")])
def test_a_username_that_looks_like_none_is_free(app: Flask, visitor: Visitor, held: str, chosen: str) -> None:
    hold(app, held)
    assert visitor.sign_up(username=chosen).url.path == "/signup/sent"


def test_a_pending_signup_takes_no_name_that_looks_the_same(visitor: Visitor, another_visitor: Visitor) -> None:
    visitor.sign_up(username="victim")
    assert another_visitor.sign_up(username="vісtіm", email="ann@example.com").url.path == "/signup/sent"


def test_a_name_that_came_to_look_like_anothers_meanwhile_is_replaced_at_the_link(
    app: Flask, visitor: Visitor, smtp: Server, send_due: Any
) -> None:
    visitor.sign_up(username="vісtіm")
    send_due()
    hold(app, "victim")
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert "That username was just taken" in visitor.text
    visitor.submit("/verify", username="аdmin")
    assert "This username is reserved." in visitor.text
    visitor.submit("/verify", username="vera")
    assert visitor.path == "/account"


def test_a_name_that_looks_like_anothers_cannot_be_changed_to(app: Flask, member: Visitor) -> None:
    hold(app, "victim")
    for name, told in (("vісtіm", TAKEN), ("Аdmin", "This username is reserved."), ("victim\u3164", "only letters")):
        member.open("/account/profile")
        member.submit("/account/profile", username=name, full_name="")
        assert told in member.text
    member.open("/account/profile")
    # It looks like the user's own name, which nobody else has.
    member.submit("/account/profile", username="mickI9", full_name="")
    assert member.path == "/account"


@pytest.mark.parametrize("name", ["admin", "Admin", "аdmin", "ADM1N", "postmaster", "no-reply", "roоt"])
def test_names_that_people_take_for_ours_are_reserved(visitor: Visitor, name: str) -> None:
    assert visitor.sign_up(username=name).status_code == 422
    assert "This username is reserved. Please choose another." in visitor.text


def test_which_names_are_reserved_is_a_setting(app: Flask, visitor: Visitor) -> None:
    app.config["RESERVED_USERNAMES"] = ["boss"]
    assert visitor.sign_up(username="bоss").status_code == 422
    assert visitor.sign_up(username="admin").url.path == "/signup/sent"


def test_who_has_a_name_that_nobody_may_choose_any_more_keeps_it(app: Flask, member: Visitor) -> None:
    for name in ("admin", "at@name", "vic\u3164tim", "\u3164"):
        with app.app_context():
            users.name(db.session.scalars(select(User)).one(), name)
            db.session.commit()
        member.open("/account/profile")
        member.submit("/account/profile", username=name, full_name="Mick")
        assert member.path == "/account"
        stranger = Visitor("http://signup.example", app)
        stranger.open("/login")
        stranger.submit("/login", identifier=name, password=PASSWORD)
        assert stranger.path == "/account", ascii(name)


def test_who_is_from_before_verification_keeps_a_name_that_looks_like_anothers(
    app: Flask, visitor: Visitor, smtp: Server, send_due: Any
) -> None:
    visitor.sign_up(username="vісtіm")
    with app.app_context():
        db.session.execute(update(User).values(purge_at=None))
        db.session.commit()
    hold(app, "victim")
    send_due()
    visitor.open(smtp.mails[0].link)
    visitor.submit("/verify")
    assert visitor.path == "/account"


def test_what_old_code_wrote_since_the_migration_is_filled_in(app: Flask, visitor: Visitor) -> None:
    hold(app, "victim")
    with app.app_context():
        db.session.execute(update(User).values(username_skeleton=""))
        db.session.commit()
        assert users.fill_in_keys() == 1
        db.session.commit()
        assert users.fill_in_keys() == 0
    assert visitor.sign_up(username="vісtіm").status_code == 422


def test_who_holds_a_name_is_looked_up_in_indexes_alone(app: Flask) -> None:
    with app.app_context():
        explain = "EXPLAIN" if db.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        # For a small table, or one without statistics, PostgreSQL might choose any plan.
        now = db.session.scalars(select(db_now())).one()
        db.session.execute(insert(User), [somebody(number, now) for number in range(2000)])
        db.session.execute(text("ANALYZE users"))
        queries = [q.compile(db.engine, compile_kwargs={"literal_binds": True}) for q in users._holders("v", "v")]
        by_key, by_skeleton = (str(db.session.execute(text(f"{explain} {query}")).all()) for query in queries)
        db.session.rollback()
    assert "ix_users_username_key" in by_key
    assert "ix_users_username_skeleton" in by_skeleton
    assert not [plan for plan in (by_key, by_skeleton) if "Seq Scan" in plan or "SCAN" in plan]


def somebody(number: int, now: datetime) -> dict[str, Any]:
    """Return the columns of a user whose username differs from its skeleton."""
    return {
        "username": f"USER{number}",
        "username_key": f"user{number}",
        "username_skeleton": f"skeleton{number}",
        "full_name": "",
        "email": f"{number}@example.com",
        "email_key": f"{number}@example.com",
        "password_hash": "x",
        "created_at": now,
        "email_verified_at": now,
    }


def test_all_that_unicode_says_looks_alike_has_one_skeleton() -> None:
    for char, shape in usernames._prototypes().items():
        assert usernames.skeleton(f"x{char}") == usernames.skeleton(f"x{shape}"), ascii(char)


def test_nothing_is_normalized_before_it_is_cut() -> None:
    long = "a" + "\u0300\u0316" * 500_000
    with pytest.raises(usernames.UsernameInvalid, match="length"):
        usernames.normalize(long)
    assert usernames.key(long) == usernames.key(long[: usernames.RAW_MAX])
    assert len(usernames.skeleton("\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 64)) <= usernames.KEY_MAX
    assert unicodedata.is_normalized("NFD", usernames.skeleton("Zoë"))


@pytest.mark.parametrize("control", ["\u202e", "\u2066", "\u200f", "\u061c"])
def test_a_full_name_that_turns_text_around_is_refused(visitor: Visitor, control: str) -> None:
    assert visitor.sign_up(full_name=f"Ann{control}Lee").status_code == 422
    assert "control characters" in visitor.text


@pytest.mark.parametrize("full_name", ["مريم بنت عمران", "राम\u200dकुमार", "D'Arcy O\u2019Neil", "👩\u200d🚀 Ann"])
def test_full_names_hold_what_people_write(visitor: Visitor, full_name: str) -> None:
    assert visitor.sign_up(full_name=full_name).url.path == "/signup/sent"


def test_a_name_turns_around_nothing_but_itself(app: Flask, member: Visitor) -> None:
    with app.app_context():
        user = db.session.scalars(select(User)).one()
        user.full_name = "Ann\u202e\u2066"
        db.session.commit()
    member.open("/account")
    assert member.page.text.count("<bdi>Ann\u202e\u2066</bdi>") == 2
    assert "<bdi>mick19</bdi>" in member.page.text
    member.open("/signup")
    assert "<bdi>mick19</bdi>" in member.page.text
