"""Pages of your own: a blueprint that knows nothing about ours gets everything that ours have."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, render_template_string
from flask.typing import ResponseReturnValue
from flask_login import login_required
from sqlalchemy import func, select

from harness.visitor import Visitor
from tests.factories import only_user, travel
from tests.pages.test_verify import everything
from webapp.accounts.users import User
from webapp.audit import AuditEvent
from webapp.db.base import db
from webapp.db.clock import db_now

PAGE = """
{% extends "base.html" %}
{% block main %}
  <form method="post" action="{{ request.path }}">
    <input type="hidden" name="csrf_token" value="{{ csrf_token() }}">
  </form>
  There are {{ people }} people.
{% endblock %}
"""


def page() -> str:
    return render_template_string(PAGE, people=db.session.scalar(select(func.count(User.id))))


@pytest.fixture
def app(app: Flask) -> Flask:
    """The app with a few extra pages that nothing else knows about."""
    own = Blueprint("projects", __name__)

    @own.get("/projects")
    def every() -> str:
        return page()

    @own.post("/projects")
    def add() -> ResponseReturnValue:
        db.session.add(AuditEvent(at=db_now(), action="project_added"))
        db.session.commit()
        return page()

    @own.post("/projects/archive")
    def archive() -> str:
        return page()

    @own.route("/projects/refused/<int:code>", methods=["GET", "POST"])
    def refused(code: int) -> ResponseReturnValue:
        abort(code)

    @own.get("/projects/private")
    @login_required
    def private() -> str:
        return page()

    @own.get("/projects/broken")
    @login_required
    def broken() -> str:
        db.session.add(AuditEvent(at=db_now(), action="half_done"))
        db.session.flush()
        abort(404)

    app.register_blueprint(own)
    return app


def token(visitor: Visitor) -> str:
    visitor.open("/projects")
    return visitor.hidden("/projects")["csrf_token"]


def posted(visitor: Visitor, path: str, **data: str) -> int:
    visitor.page = visitor.http.post(path, data=data)
    return visitor.page.status_code


def added(app: Flask) -> int:
    with app.app_context():
        return db.session.scalar(select(func.count()).where(AuditEvent.action == "project_added")) or 0


@pytest.mark.parametrize("typed", [{}, {"csrf_token": ""}, {"csrf_token": "bad"}])
def test_a_post_without_a_good_token_never_gets_there(app: Flask, visitor: Visitor, typed: dict[str, str]) -> None:
    good = token(visitor)
    assert posted(visitor, "/projects", **typed) == 400
    assert "This page expired" in visitor.text
    assert added(app) == 0
    assert posted(visitor, "/projects", csrf_token=good) == 200
    assert added(app) == 1
    visitor.http.headers["X-CSRFToken"] = good
    assert posted(visitor, "/projects") == 200
    another = Visitor("http://signup.example", app)
    assert posted(another, "/projects", csrf_token=good) == 400


@pytest.mark.thai
def test_an_answer_to_a_form_has_the_languages_of_its_page(visitor: Visitor) -> None:
    good = token(visitor)
    for path, leads_to in (("/projects", "/projects"), ("/projects/archive", "/"), ("/projects/refused/403", None)):
        posted(visitor, path, csrf_token=good)
        assert f'href="{leads_to or path}?language=th"' in visitor.page.text, path
    posted(visitor, "/projects?language=th", csrf_token=good)
    assert '<html lang="th">' in visitor.page.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("code", [403, 404, 413, 429, 500])
def test_what_it_refuses_is_told_on_a_page_as_ours(visitor: Visitor, code: int, method: str) -> None:
    data: Any = {"csrf_token": token(visitor)} if method == "POST" else None
    visitor.page = visitor.http.request(method, f"/projects/refused/{code}", data=data)
    assert visitor.page.status_code == code
    assert str(code) in visitor.text
    assert "Go to the start page" in visitor.text
    headers = visitor.page.headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_who_is_signed_out_comes_back_to_it(member: Visitor, another_visitor: Visitor) -> None:
    another_visitor.open("/projects/private?a=1")
    assert re.search(r'action="/login\?next=/projects/private%3Fa%3D1"', another_visitor.page.text)


@pytest.mark.parametrize("path", ["/projects", "/projects/private", "/account/password", "/"])
def test_a_session_lives_on_by_whatever_page_asks_whose_it_is(app: Flask, member: Visitor, path: str) -> None:
    for _ in range(2):
        travel(app, 13 * 86400)
        assert member.open(path).status_code == 200
    member.open("/account")
    assert member.path == "/account"


def test_what_a_page_left_undone_stays_undone_when_its_session_is_noted(app: Flask, member: Visitor) -> None:
    travel(app, 3700)
    before = everything(app)
    assert member.open("/projects/broken").status_code == 404
    after = everything(app)
    assert {table for table in before if before[table] != after[table]} == {"user_sessions"}
    # Once an hour is enough.
    member.open("/projects/private")
    assert everything(app) == after
    assert only_user(app).is_email_verified


def test_where_nobody_asks_who_it_is_nothing_is_read(app: Flask, member: Visitor) -> None:
    travel(app, 3700)
    before = everything(app)
    assert member.open("/livez").status_code == 200
    assert everything(app) == before
