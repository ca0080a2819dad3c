"""What all pages have in common."""

from __future__ import annotations

import re
from urllib.robotparser import RobotFileParser

import httpx
import pytest
from flask import Flask

from harness.processes import free_port, gunicorn, wait_for_port
from harness.visitor import Visitor
from webapp import create_app


def rules(app: Flask, method: str) -> list[str]:
    return [rule.rule for rule in app.url_map.iter_rules() if method in (rule.methods or ())]


def test_no_form_of_any_page_does_anything_without_its_csrf_token(app: Flask) -> None:
    posts = rules(app, "POST")
    assert "/signup" in posts
    assert "/verify" in posts
    assert "/reset" in posts
    for path in posts:
        # Fresh, so that the page has no token, session or link.
        page = Visitor("http://signup.example", app).http.post(path, data={}, follow_redirects=False)
        assert page.status_code in {303, 400, 403, 404}, path
        if page.status_code == 303:
            assert page.headers["location"] in {"/", "/signup", "/login"}, path


@pytest.mark.parametrize(
    "path", ["/", "/signup", "/login", "/forgot", "/verify", "/nowhere", "/verify/garbage", "/reset/garbage"]
)
def test_every_page_has_its_headers(visitor: Visitor, path: str) -> None:
    headers = visitor.open(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe-inline" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in headers["permissions-policy"]
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"
    assert "strict-transport-security" not in headers


def test_with_a_public_url_of_https_browsers_are_told_to_stay_there(environ: dict[str, str]) -> None:
    app = create_app({**environ, "PUBLIC_URL": "https://signup.example"})
    # However the request arrived: a proxy in front may have ended TLS.
    assert "strict-transport-security" in Visitor("http://signup.example", app).open("/").headers


def test_no_page_loads_anything_from_elsewhere_or_runs_inline_code(visitor: Visitor) -> None:
    visitor.sign_up()
    for path in ("/", "/signup", "/login", "/forgot", "/signup/sent", "/nowhere"):
        page = visitor.open(path).text
        scripts = re.findall(r"<script[^>]*>.*?</script>", page, re.DOTALL)
        assert all(re.fullmatch(r'<script src="/static/[^"]+" defer></script>', script) for script in scripts)
        assert not re.search(r"<style|\s(style|on[a-z]+)=", page)
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
    assert "Nothing was saved" in visitor.text


def test_a_body_of_another_type_is_an_empty_form(visitor: Visitor) -> None:
    visitor.page = visitor.http.post("/signup", json={"username": "mick19"})
    assert visitor.page.status_code == 400
    assert "Nothing was changed" in visitor.text


@pytest.mark.parametrize("body", ["[1,2]", "5", '"x"', '{"username": 5, "csrf_token": 5}', '{"password": "\\ud800"}'])
def test_json_is_no_form(visitor: Visitor, app: Flask, body: str) -> None:
    for path in rules(app, "POST"):
        headers = {"Content-Type": "application/json"}
        visitor.page = visitor.http.post(path, content=body, headers=headers, follow_redirects=False)
        assert visitor.page.status_code < 500, path


def test_a_file_is_no_field(visitor: Visitor) -> None:
    visitor.open("/signup")
    token = visitor.hidden("/signup")
    visitor.page = visitor.http.post("/signup", data=token, files={"username": b"mick", "password": b"x"})
    assert visitor.page.status_code == 422
    assert "Please choose a username." in visitor.text


def test_a_form_that_another_site_submits_leaves_the_session_alone(visitor: Visitor, app: Flask) -> None:
    visitor.sign_up()
    for path in rules(app, "POST"):
        # Like a browser: without our cookie, which is Lax.
        stranger = Visitor("http://signup.example", app)
        page = stranger.http.post(path, data={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert page.status_code == 400
        assert "set-cookie" not in page.headers
    visitor.page = visitor.http.post("/logout", data={"csrf_token": "bad"})
    assert visitor.page.status_code == 400
    visitor.open("/signup/sent")
    assert "mick@example.com" in visitor.text


def test_the_host_header_changes_no_link(visitor: Visitor, app: Flask) -> None:
    page = visitor.http.get("/account", headers={"Host": "evil.example"}, follow_redirects=False)
    assert page.headers["location"].startswith("/login")
    assert "evil.example" not in visitor.http.get("/signup", headers={"Host": "evil.example"}).text


def test_no_header_changes_the_path_that_was_asked_for(process_environ: dict[str, str]) -> None:
    port = free_port()
    with gunicorn(process_environ, port, "--workers", "1"):
        wait_for_port(port, 60)
        # As a proxy on the same machine passes it on, which gunicorn trusts.
        answer = httpx.get(f"http://127.0.0.1:{port}/login", headers={"SCRIPT_NAME": "/log"}, timeout=20)
    assert answer.status_code == 200
    assert 'action="/login"' in answer.text


def test_an_answer_names_its_request(visitor: Visitor) -> None:
    assert visitor.http.get("/", headers={"X-Request-ID": "abc-123"}).headers["x-request-id"] == "abc-123"
    made = visitor.http.get("/", headers={"X-Request-ID": "bad id <b>"}).headers["x-request-id"]
    assert len(made) == 32


def test_the_development_mailbox_exists_only_in_development(environ: dict[str, str]) -> None:
    assert not [rule for rule in rules(create_app(environ), "GET") if "mailbox" in rule]
    assert [rule for rule in rules(create_app({**environ, "APP_ENV": "development"}), "GET") if "mailbox" in rule]


@pytest.mark.parametrize("path", ["/", "/signup", "/login", "/forgot", "/nowhere"])
def test_a_page_that_is_shared_or_found_says_whose_it_is_and_what_for(visitor: Visitor, path: str) -> None:
    page = visitor.open(path).text
    told = dict(re.findall(r'<meta (?:name|property)="([\w:-]+)" content="([^"]*)"', page))
    assert told["og:site_name"] == "Acme"
    assert len(told["description"]) > 50
    assert told["og:description"] == told["description"]
    colours = re.findall(r'<meta name="theme-color" content="(#\w{6})" media="\(prefers-color-scheme: (\w+)\)"', page)
    css = visitor.open("/static/app.css").text
    assert [scheme for _colour, scheme in colours] == ["light", "dark"]
    assert all(f"--paper: {colour};" in css for colour, _scheme in colours)


def test_search_engines_are_kept_from_links_and_from_what_is_somebodys_own(visitor: Visitor) -> None:
    answer = visitor.open("/robots.txt")
    assert answer.headers["content-type"].startswith("text/plain")
    reader = RobotFileParser()
    reader.parse(answer.text.splitlines())
    assert all(reader.can_fetch("any", path) for path in ("/", "/signup", "/login", "/forgot"))
    links = ("/verify/AAAA", "/reset/AAAA", "/account/email/confirm/AAAA", "/ops/mails")
    assert not any(reader.can_fetch("any", path) for path in links)
    # What is shown by a browser's cookie alone is not there for them.
    for path in ("/signup/sent", "/forgot/sent"):
        assert visitor.open(path).url.path == path.removesuffix("/sent")
