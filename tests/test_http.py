"""What every page has in common."""

from __future__ import annotations

import pytest
from flask import Flask

from tests.visitor import Visitor
from webapp import create_app


def rules(app: Flask, method: str) -> list[str]:
    return [rule.rule for rule in app.url_map.iter_rules() if method in (rule.methods or ())]


def test_no_form_of_any_page_does_anything_without_its_csrf_token(app: Flask) -> None:
    posts = rules(app, "POST")
    assert "/signup" in posts
    assert "/verify" in posts
    for path in posts:
        # Fresh, so that the page has no token, session or link to go by.
        page = Visitor("http://signup.example", app).http.post(path, data={}, follow_redirects=False)
        assert page.status_code in {303, 400, 404}, path
        if page.status_code == 303:
            assert page.headers["location"] in {"/", "/signup"}, path


@pytest.mark.parametrize("path", ["/", "/signup", "/login", "/verify", "/nowhere", "/verify/garbage"])
def test_every_page_has_its_headers(visitor: Visitor, path: str) -> None:
    headers = visitor.open(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in headers


def test_over_https_browsers_are_told_to_stay_there(app: Flask) -> None:
    assert "strict-transport-security" in Visitor("https://signup.example", app).open("/").headers


def test_no_page_loads_anything_from_elsewhere_or_runs_inline_code(visitor: Visitor) -> None:
    for path in ("/", "/signup", "/login", "/nowhere"):
        page = visitor.open(path).text
        assert "<script" not in page
        assert "style=" not in page
        assert 'src="http' not in page
        assert 'href="http' not in page


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/signup"), ("PUT", "/verify"), ("POST", "/"), ("BREW", "/")])
def test_an_unknown_method_gets_a_page_that_leads_on(visitor: Visitor, method: str, path: str) -> None:
    visitor.page = visitor.http.request(method, path)
    assert visitor.page.status_code == 405
    assert "GET" in visitor.page.headers["allow"]
    assert "Go to the start page" in visitor.text


def test_an_unknown_page_leads_on(visitor: Visitor) -> None:
    visitor.open("/nowhere")
    assert visitor.page.status_code == 404
    assert "Go to the start page" in visitor.text


def test_a_body_of_10_megabytes_is_refused_with_a_page(visitor: Visitor) -> None:
    visitor.open("/signup")
    visitor.submit("/signup", full_name="x" * 10_000_000)
    assert visitor.page.status_code == 413
    assert "nothing was saved" in visitor.text


def test_a_body_of_another_type_is_an_empty_form(visitor: Visitor) -> None:
    visitor.page = visitor.http.post("/signup", json={"username": "mick19"})
    assert visitor.page.status_code == 400
    assert "Nothing was changed" in visitor.text


def test_the_host_header_changes_no_link(visitor: Visitor, app: Flask) -> None:
    page = visitor.http.get("/account", headers={"Host": "evil.example"}, follow_redirects=False)
    assert page.headers["location"].startswith("/login")
    assert "evil.example" not in visitor.http.get("/signup", headers={"Host": "evil.example"}).text


def test_an_answer_names_its_request(visitor: Visitor) -> None:
    assert visitor.http.get("/", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = visitor.http.get("/", headers={"X-Request-ID": "bad id <b>"}).headers["x-request-id"]
    assert len(made) == 32


def test_the_development_mailbox_exists_only_in_development(environ: dict[str, str]) -> None:
    assert not [rule for rule in rules(create_app(environ), "GET") if "mailbox" in rule]
    assert [rule for rule in rules(create_app({**environ, "APP_ENV": "development"}), "GET") if "mailbox" in rule]
