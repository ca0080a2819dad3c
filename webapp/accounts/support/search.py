"""Finding people by what is known about them, with queries that stay fast however many there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import EMAIL_MAX, address_key
from webapp.accounts.users import User
from webapp.db.base import db, keyset_page, row_number

# Matches per kind of match: to find one of more people, type more.
FOUND_MAX = 200
# How many of the newest are searched for the text anywhere in a name; names of older ones must begin with it.
NEWEST = 5000
TYPED_MAX = EMAIL_MAX

LAST_CHARACTER = "\U0010ffff"


def find(typed: str) -> set[int]:
    """Return the ids of people with this id, username or address, or with this text in a name."""
    text = typed.replace("\0", "").strip()[:TYPED_MAX]
    if not text:
        return set()
    key = usernames.key(text)
    is_named = User.full_name != ""
    newest = select(User.id, User.username_key, User.full_name).order_by(User.id.desc()).limit(NEWEST).subquery()
    questions: list[Select[int]] = [
        *meant(text),
        select(User.id).where(_is_between(User.username_key, key, key + LAST_CHARACTER)),
        select(User.id).where(
            is_named, _is_between(func.lower(User.full_name), func.lower(text), func.lower(text + LAST_CHARACTER))
        ),
        select(newest.c.id).where(
            or_(newest.c.username_key.contains(key, autoescape=True), _has(newest.c.full_name, text))
        ),
    ]
    return {user_id for one in questions for user_id in db.session.scalars(one.limit(FOUND_MAX))}


def named(typed: str) -> Sequence[User]:
    """Return the people with exactly this id, username or address, newest first."""
    text = typed.replace("\0", "").strip()[:TYPED_MAX]
    ids = {user_id for one in meant(text) for user_id in db.session.scalars(one.limit(FOUND_MAX))}
    return page(ids=ids, limit=FOUND_MAX)


def page(
    *, limit: int, ids: Collection[int] | None = None, beyond: int | None = None, oldest_first: bool = False
) -> Sequence[User]:
    """Return these people, or all of them, newest or oldest first; a next page is `beyond` the last id."""
    query = keyset_page(select(User), User.id, beyond=beyond, oldest_first=oldest_first)
    if ids is not None:
        query = query.where(User.id.in_(ids))
    return db.session.scalars(query.limit(limit)).all()


def count(most: int) -> int:
    """Return how many people there are, counting no more than `most`."""
    people = select(User.id).limit(most).subquery()
    return db.session.scalar(select(func.count()).select_from(people)) or 0


def meant(text: str) -> list[Select[int]]:
    """Return queries for whoever is meant, as at sign-in: each can use its own index."""
    questions = [
        select(User.id).where(User.email_key == address_key(text)).order_by(User.id.desc()),
        select(User.id).where(User.username_key == usernames.key(text)).order_by(User.id.desc()),
    ]
    if number := row_number(text):
        questions.append(select(User.id).where(User.id == number))
    return questions


def _is_between(column: Any, first: Any, last: Any) -> ColumnElement[bool]:
    """Return whether it is in this range of its index, which is in byte order."""
    if db.engine.dialect.name == "postgresql":
        return and_(column.op("~>=~", is_comparison=True)(first), column.op("~<~", is_comparison=True)(last))
    return and_(column >= first, column < last)


def _has(column: Any, text: str) -> ColumnElement[bool]:
    # Lower-cased by the database on both sides, since SQLite lower-cases fewer letters than Python does.
    escaped = text.replace("/", "//").replace("%", "/%").replace("_", "/_")
    return func.lower(column).like(func.lower(f"%{escaped}%"), escape="/")
