"""Making it your own: languages, words, templates, emails and tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, g, request, session
from jinja2 import UndefinedError
from sqlalchemy import Column, Integer, String
from sqlalchemy.orm import mapped_column

from harness.processes import wait_until
from harness.smtp_server import Server
from harness.visitor import Visitor
from tests.accounts.test_codes import code_in
from tests.conftest import Embedded, send_due_mails
from tests.factories import get, make_signup, only_user, work
from webapp import create_app, paths
from webapp.accounts import users
from webapp.db.base import db
from webapp.extensions import huey, mail
from webapp.outbox import posting
from webapp.pages.account.profile import ProfileForm
from webapp.pages.shared import forms
from webapp.pages.shared.forms import NameFields, WithAddress
from webapp.pages.signup.form import SignupForm

Write = Callable[[str, str], None]

on_embedded = pytest.mark.parametrize("backend", [Embedded.name], indirect=True)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file to this test's own instance/."""
    monkeypatch.setattr(paths, "INSTANCE", tmp_path / "instance")

    def write(name: str, text: str) -> None:
        path = tmp_path / "instance" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")

    return write


@pytest.fixture
def start(environ: dict[str, str], cheap_passwords: None) -> Iterator[Callable[..., Flask]]:
    """Start the app with these settings, and with the files written so far."""
    started: list[Flask] = []

    def start(**settings: str) -> Flask:
        app = create_app({**environ, **settings})
        app.testing = True
        app.extensions["huey"].storage.blocking = False
        started.append(app)
        return app

    yield start
    mail.close()
    for app in started:
        with app.app_context():
            db.engine.dispose()


def visit(app: Flask, url: str = "/", **headers: str) -> httpx.Response:
    visitor = Visitor("http://signup.example", app)
    visitor.http.headers.update(headers)
    return visitor.open(url)


# Languages and words.


@on_embedded
def test_an_app_in_one_language_offers_no_other(start: Callable[..., Flask], smtp: Server) -> None:
    app = start(LANGUAGES="en", SECURITY_CONTACT="security@acme.example")
    visitor = Visitor("http://signup.example", app)
    visitor.http.headers["Accept-Language"] = "th"
    visitor.sign_up()
    for url in ("/signup/sent?language=th", "/", "/login", "/nowhere"):
        page = visitor.open(url)
        assert '<html lang="en">' in page.text
        assert "set-cookie" not in page.headers or "language=" not in page.headers["set-cookie"]
        assert 'class="languages"' not in page.text
        assert "ไทย" not in page.text
    # Someone chose a language that has been removed since.
    with app.app_context():
        users.set_locale(db.session.merge(only_user(app)), "th")
    send_due_mails(app)
    assert smtp.mails[-1].message["Subject"] == f"{code_in(smtp.mails[-1])} is your Acme code"
    assert "Preferred-Languages: en\n" in visitor.open("/.well-known/security.txt").text


@on_embedded
def test_the_first_language_is_for_whoever_asks_for_none_of_them(start: Callable[..., Flask]) -> None:
    app = start(LANGUAGES="th,en")
    assert '<html lang="th">' in visit(app, **{"Accept-Language": "fr"}).text
    assert '<html lang="en">' in visit(app, **{"Accept-Language": "en"}).text


@on_embedded
def test_a_catalogue_of_ones_own_wins_and_adds_a_language(write: Write, start: Callable[..., Flask]) -> None:
    write("translations/en.po", 'msgid "Sign in"\nmsgstr "Come in"\n')
    write("translations/fr.po", 'msgid "Sign in"\nmsgstr "Entrer"\n')
    app = start(LANGUAGES="en,fr")
    english, french = (visit(app, "/login", **{"Accept-Language": code}).text for code in ("en", "fr-CA"))
    assert "<h1>Come in</h1>" in english
    assert '<html lang="fr">' in french
    assert "<h1>Entrer</h1>" in french
    assert "Sign up" in french
    assert re.findall(r'hreflang="(\w+)"\s*(?:aria-current="true")?>(\S+)</a>', french) == [
        ("en", "English"),
        ("fr", "Français"),
    ]


# Templates.


@on_embedded
def test_a_template_of_ones_own_wins_and_may_change_a_block_of_ours(write: Write, start: Callable[..., Flask]) -> None:
    write("templates/login.html", '{% extends "webapp/login.html" %}{% block head %}<!-- mine -->{% endblock %}')
    write("templates/home.html", "All mine.")
    app = start()
    page = visit(app, "/login").text
    assert "<!-- mine -->" in page
    assert 'name="identifier"' in page
    assert visit(app).text == "All mine."


@on_embedded
def test_a_name_that_no_template_knows_is_an_error(write: Write, start: Callable[..., Flask]) -> None:
    write("templates/home.html", "Hello {{ nobody }}")
    app = start()
    with pytest.raises(UndefinedError, match="'nobody' is undefined"):
        visit(app)
    app.testing = False
    assert visit(app).status_code == 500


@on_embedded
@pytest.mark.parametrize(
    "asked",
    ["request.args.x", "request.cookies.x", "request.headers['X-X']", "session['x'] or request.args['x']"],
)
def test_what_a_page_says_to_one_visitor_nobody_else_sees(
    write: Write, start: Callable[..., Flask], asked: str
) -> None:
    write(
        "templates/signup.html",
        '{% extends "webapp/signup.html" %}{% block head %}For {{ ' + asked + " }}{% endblock %}",
    )
    app = start()

    @app.before_request
    def remember() -> None:
        session["x"] = request.args.get("x")

    for name in ("alice", "mallory"):
        page = visit(app, f"/signup?x={name}", Cookie=f"x={name}", **{"X-X": name})
        assert f"For {name}" in page.text
    visitor = visit(app, "/signup?x=nobody", Cookie="x=nobody", **{"X-X": "nobody"})
    assert "alice" not in visitor.text


@on_embedded
def test_a_template_of_ones_own_knows_what_was_done_before_the_request(
    write: Write, start: Callable[..., Flask]
) -> None:
    write("templates/base.html", "In {{ g.theme }}.{% block main %}{% endblock %}")
    app = start()

    @app.before_request
    def choose() -> None:
        g.theme = request.args.get("theme", "plain")

    for path in ("/signup", "/login"):
        for query, theme in (("", "plain"), ("?theme=dark", "dark")):
            page = visit(app, path + query)
            assert page.status_code == 200
            assert page.text.startswith(f"In {theme}.")


# Emails.


def post(app: Flask, template: str, facts: dict[str, Any]) -> Any:
    """Promise the only user one of your own emails."""
    with app.app_context():
        user = only_user(app)
        email_id = posting.post(
            template=template,
            to_address=user.email,
            user_id=user.id,
            locale=user.locale,
            dedupe_key=template,
            facts=facts,
        )
        db.session.commit()
        return email_id


def write_email(write: Write, name: str, text: str) -> None:
    write(f"templates/mail/{name}/subject.txt", "News")
    write(f"templates/mail/{name}/body.txt", text)
    write(
        f"templates/mail/{name}/body.html", '{% extends "mail/base.html" %}{% block body %}' + text + "{% endblock %}"
    )


def test_an_email_of_ones_own_says_what_it_was_posted_with(
    write: Write, start: Callable[..., Flask], smtp: Server
) -> None:
    write_email(write, "news", "{% for one in things %}<{{ one.name }}: {{ one.count + 1 }}>{% endfor %} {{ address }}")
    app = start()
    make_signup(app)
    post(app, "news", {"things": [{"name": "a & b", "count": 1}, {"name": "c", "count": 2}]})
    send_due_mails(app)
    news = smtp.mails[-1]
    assert news.message["Subject"] == "News"
    assert news.text.strip() == "<a & b: 2><c: 3> mick@example.com"
    assert "<a &amp; b: 2><c: 3> mick@example.com" in news.html
    assert '<body class="page" style="' in news.html


@pytest.mark.parametrize(
    ("text", "facts", "error"),
    [
        ("{{ projects }}", {}, "UndefinedError: 'projects' is undefined"),
        ("x", {"lang": "th"}, "got multiple values for keyword argument 'lang'"),
        ('<p class="nothing-like-it">', {}, "mail/inlined.css has no style for nothing-like-it"),
    ],
)
def test_an_email_of_ones_own_that_lacks_something_is_told_and_not_sent(
    write: Write, start: Callable[..., Flask], smtp: Server, text: str, facts: dict[str, str], error: str
) -> None:
    write_email(write, "news", text)
    app = start()
    make_signup(app)
    email_id = post(app, "news", facts)
    send_due_mails(app)
    email = get(app, email_id)
    assert (email.status, email.last_error_class) == ("queued", "Unsendable")
    assert error in (email.last_error or "")
    assert len(smtp.mails) == 1


@on_embedded
def test_words_and_look_of_our_emails_are_ones_own_too(write: Write, start: Callable[..., Flask], smtp: Server) -> None:
    write("templates/mail/verify_email/subject.txt", "Hello from {{ app_name }}")
    write(
        "templates/mail/verify_email/body.html",
        '{% extends "webapp/mail/verify_email/body.html" %}{% block footer %}<p class="text">Ours.{% endblock %}',
    )
    write(
        "templates/mail/inlined.css", (paths.TEMPLATES / "mail" / "inlined.css").read_text() + ".text { color: red; }"
    )
    app = start()
    make_signup(app)
    send_due_mails(app)
    assert smtp.mails[-1].message["Subject"] == "Hello from Acme"
    assert '<p class="text" style="color: red;">Ours.' in smtp.mails[-1].html


# Tasks and fields.


def test_delayed_tasks_of_ones_own_run_beside_hints(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    task = huey.task(name="one_of_my_own")(done.append)
    make_signup(app, due=False)
    # More than there are workers: each of them is busy with a task of its own.
    for number in range(5):
        huey.enqueue(task.s(number, delay=0.01))

    def both_were_due() -> bool:
        with app.app_context():
            for due in huey.read_schedule():
                huey.execute(due)
        return len(done) == 5

    wait_until(both_were_due, "a task did not run", 10)
    work(app)
    assert sorted(done) == list(range(5))
    assert "due_tasks_unknown" not in caplog.text
    huey._registry.unregister(task.task_class)


@pytest.mark.parametrize("name", ["full_name", "key", "own_fields", "is_authenticated", "session_token", "metadata"])
def test_a_field_named_as_what_users_have_is_told(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    field = mapped_column(String(100), server_default="", info={"label": "Mine"})
    monkeypatch.setattr(users, "Fields", type("Fields", (), {name: field}))
    with pytest.raises(TypeError, match=rf"own/fields\.py: {name} must be a name that users do not have yet"):
        users._own_fields()


@pytest.mark.parametrize(
    "field",
    [
        mapped_column(String(100), info={"label": "Mine"}),
        mapped_column(String(100), server_default=""),
        mapped_column(String, server_default="", info={"label": "Mine"}),
        mapped_column(Integer, server_default="0", info={"label": "Mine"}),
    ],
)
def test_a_field_that_is_not_complete_is_told(monkeypatch: pytest.MonkeyPatch, field: Any) -> None:
    monkeypatch.setattr(users, "Fields", type("Fields", (), {"boat": field}))
    with pytest.raises(TypeError, match=r"own/fields\.py: boat must be as mapped_column\("):
        users._own_fields()


@pytest.mark.parametrize("form", [SignupForm, ProfileForm])
@pytest.mark.parametrize("name", ["limit", "status", "data", "errors", "meta", "csrf_token"])
def test_a_field_named_as_what_forms_have_is_told(
    monkeypatch: pytest.MonkeyPatch, form: type[NameFields], name: str
) -> None:
    monkeypatch.setattr(users, "OWN_FIELDS", (Column(name, String(100)),))
    with pytest.raises(TypeError, match=rf"own/fields\.py: {name} must be a name that our forms do not have yet"):
        type("Again", (form,), {})


@pytest.mark.parametrize(
    ("form", "name"),
    [(NameFields, "name"), (NameFields, "own"), (SignupForm, "nonce"), (WithAddress, "address")],
)
def test_a_field_named_as_what_one_form_has_is_told(monkeypatch: pytest.MonkeyPatch, form: type, name: str) -> None:
    monkeypatch.setattr(users, "OWN_FIELDS", (Column(name, String(100)),))
    with pytest.raises(TypeError, match=rf"own/fields\.py: {name} must be a name that our forms do not have yet"):
        forms.refuse_own_names(form)
