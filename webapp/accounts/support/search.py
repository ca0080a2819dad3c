"""People found by what is known of them, with questions that stay quick however many there are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import EMAIL_MAX, address_key
from webapp.accounts.users import User
from webapp.db.base import db, row_number

# Of those who are alike in one way, as many are found: whoever looks for one of more has to type more.
FOUND_MAX = 200
# So many of the newest are looked through for a name that has the text anywhere; older ones begin with it.
NEWEST = 5000
TYPED_MAX = EMAIL_MAX

LAST_CHARACTER = "\U0010ffff"


def find(typed: str) -> set[int]:
    """Return the ids of those who have this number, username or address, or a name with this text in it."""
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
    """Return who has exactly this number, username or address, the newest first."""
    text = typed.replace("\0", "").strip()[:TYPED_MAX]
    ids = {user_id for one in meant(text) for user_id in db.session.scalars(one.limit(FOUND_MAX))}
    return page(ids=ids, limit=FOUND_MAX)


def page(*, limit: int, ids: Collection[int] | None = None, before: int | None = None) -> Sequence[User]:
    """Return the newest of these people first, or of all; the next page comes `before` the last of this one."""
    query = select(User).order_by(User.id.desc()).limit(limit)
    if ids is not None:
        query = query.where(User.id.in_(ids))
    if before is not None:
        query = query.where(User.id < before)
    return db.session.scalars(query).all()


def meant(text: str) -> list[Select[int]]:
    """Return the questions of who is meant by it, as at sign-in: each finds its index."""
    questions = [
        select(User.id).where(User.email_key == address_key(text)).order_by(User.id.desc()),
        select(User.id).where(User.username_key == usernames.key(text)).order_by(User.id.desc()),
    ]
    if number := row_number(text):
        questions.append(select(User.id).where(User.id == number))
    return questions


def _is_between(column: Any, first: Any, last: Any) -> ColumnElement[bool]:
    """Return whether it is in this range of its index, which is in the order of bytes."""
    if db.engine.dialect.name == "postgresql":
        return and_(column.op("~>=~", is_comparison=True)(first), column.op("~<~", is_comparison=True)(last))
    return and_(column >= first, column < last)


def _has(column: Any, text: str) -> ColumnElement[bool]:
    # Lower-cased by the database on both sides, since SQLite lowers less than Python does.
    escaped = text.replace("/", "//").replace("%", "/%").replace("_", "/_")
    return func.lower(column).like(func.lower(f"%{escaped}%"), escape="/")
