"""Who is asking: what a reverse proxy learns from us, and what the app behind it gets."""

from __future__ import annotations

import os
import re
import runpy
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch
from urllib.parse import unquote

import httpx
import psycopg
import pytest
import yaml  # type: ignore[import-untyped]
from flask import Flask
from sqlalchemy import event
from werkzeug.serving import WSGIRequestHandler, make_server

from harness.processes import Process, free_port, wait_until
from harness.proxies import Handler, listening
from harness.smtp_server import Server
from harness.visitor import PASSWORD, Visitor
from tests.conftest import Embedded, for_installed_caddy, installed, send_due_mails
from tests.factories import only_user, travel
from webapp import config, create_app
from webapp.accounts import links
from webapp.db import engines
from webapp.db.base import db
from webapp.paths import ROOT

LOADED = {"text/css", "text/javascript", "image/svg+xml", "image/png"}

SENDER = {"MAIL_DEFAULT_SENDER": "no-reply@signup.example"}

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
EXAMPLE = ROOT / "examples" / "front-door"


def rename(app: Flask, full_name: str) -> None:
    with app.app_context():
        db.session.merge(only_user(app)).full_name = full_name
        db.session.commit()


def test_it_tells_who_is_signed_in(app: Flask, member: Visitor) -> None:
    page = member.open("/auth")
    assert page.status_code == 204
    assert page.headers["Remote-User"] == str(only_user(app).id)
    assert page.headers["Remote-Name"] == "mick19"
    assert page.headers["Remote-Email"] == "mick@example.com"
    assert "Set-Cookie" not in page.headers


@pytest.mark.parametrize("name", ["Zoë Müller", "สมชาย ใจดี", "100% O'Neil", "a\r\nRemote-User: 1", "🦉"])
def test_any_name_fits_into_a_header_and_is_read_back(app: Flask, member: Visitor, name: str) -> None:
    rename(app, name)
    sent = member.open("/auth").headers
    assert re.fullmatch(r"[ -~]+", sent["Remote-Name"])
    assert unquote(sent["Remote-Name"]) == name
    assert sent["Remote-User"] == str(only_user(app).id)


def test_it_tells_nothing_of_who_is_not(member: Visitor, another_visitor: Visitor) -> None:
    page = another_visitor.open("/auth")
    assert (page.status_code, page.text) == (401, "")
    assert not [name for name in page.headers if name.lower().startswith("remote-")]
    # Nor anything about people who wait for the email, or have signed out.
    another_visitor.sign_up(username="ann", email="ann@example.com")
    assert another_visitor.open("/auth").status_code == 401
    member.open("/account")
    member.submit("/logout")
    assert member.open("/auth").status_code == 401


@pytest.mark.parametrize(
    ("headers", "leads_to"),
    [
        ({"X-Original-URL": "http://signup.example/a?b=1&c=2"}, "?next=http%3A//signup.example/a%3Fb%3D1%26c%3D2"),
        (
            {"X-Forwarded-Proto": "http", "X-Forwarded-Host": "signup.example", "X-Forwarded-Uri": "/a?b=1"},
            "?next=http%3A//signup.example/a%3Fb%3D1",
        ),
        ({"X-Original-URL": "http://evil.example/"}, ""),
        ({"X-Original-URL": "//evil.example/"}, ""),
        ({"X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example", "X-Forwarded-Uri": "/"}, ""),
        ({"X-Forwarded-Proto": "http", "X-Forwarded-Host": "signup.example@evil.example"}, ""),
        ({"Host": "evil.example"}, ""),
        ({}, ""),
    ],
)
def test_asked_to_it_leads_to_where_one_signs_in(visitor: Visitor, headers: dict[str, str], leads_to: str) -> None:
    page = visitor.http.get("/auth?redirect", headers=headers, follow_redirects=False)
    assert page.status_code == 303
    assert page.headers["Location"] == f"http://signup.example/login{leads_to}"


def test_it_reads_once_and_writes_once_an_hour(app: Flask, member: Visitor) -> None:
    assert [statement.split()[0] for statement in asked_of_database(app, member)] == ["SELECT"]
    travel(app, 3700)
    assert "UPDATE" in [statement.split()[0] for statement in asked_of_database(app, member)]
    assert [statement.split()[0] for statement in asked_of_database(app, member)] == ["SELECT"]


def asked_of_database(app: Flask, visitor: Visitor) -> list[str]:
    statements: list[str] = []
    with app.app_context():
        engine = db.engine

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.split(maxsplit=1)[0] not in {"BEGIN", "SET"}:
            statements.append(statement)

    execute = psycopg.Cursor.execute

    def noting(cursor: Any, query: Any, *more: Any, **options: Any) -> Any:
        note(None, None, str(query))
        return execute(cursor, query, *more, **options)

    on_postgres = engine.dialect.name == "postgresql"
    if not on_postgres:
        event.listen(engine, "before_cursor_execute", note)
    try:
        # SQLAlchemy does not see all the queries to PostgreSQL.
        with patch.object(psycopg.Cursor, "execute", noting) if on_postgres else nullcontext():
            assert visitor.open("/auth").status_code == 204
    finally:
        if not on_postgres:
            event.remove(engine, "before_cursor_execute", note)
    return statements


@pytest.mark.parametrize("backend", ["servers"], indirect=True)
class TestWhenTheConnectionEnds:
    @pytest.fixture
    def environ(self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        # This machine may be busy.
        monkeypatch.setitem(engines.BOUNDS, "lock_timeout", "60s")
        return {**environ, "DATABASE_TIMEOUT": "60"}

    def test_the_question_is_asked_once_more(self, environ: dict[str, str], member: Visitor) -> None:
        waiting = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with ThreadPoolExecutor() as pool, psycopg.connect(environ["DATABASE_URL"], autocommit=True) as watcher:
            with psycopg.connect(environ["DATABASE_URL"]) as holder:
                holder.execute("LOCK TABLE user_sessions")
                answer = pool.submit(member.open, "/auth")
                wait_until(lambda: watcher.execute(f"SELECT pid {waiting}").fetchone(), "it did not ask")
                watcher.execute(f"SELECT pg_terminate_backend(pid) {waiting}")
            assert answer.result().status_code == 204


class TestBehindAProxy:
    """The example, with the real programs."""

    @pytest.fixture
    def port(self) -> int:
        return free_port()

    @pytest.fixture
    def environ(self, environ: dict[str, str], port: int) -> dict[str, str]:
        url = f"http://127.0.0.1:{port}"
        return {**environ, "PUBLIC_URL": url, "APP_URL": f"{url}/", "TRUSTED_PROXIES": "1", **SENDER}

    @pytest.fixture(params=["nginx", "caddy"])
    def door(self, request: pytest.FixtureRequest, app: Flask, port: int, tmp_path: Path) -> Iterator[str]:
        installed(request.param)
        behind = runpy.run_path(str(EXAMPLE / "app.py"))["app"]
        Noting.names.clear()
        with served(app) as own, served(behind, Noting) as behind_port:
            ports = {"8080": port, "8000": own, "9000": behind_port}
            with running(PROXIES[request.param](tmp_path, ports), tmp_path, f"http://127.0.0.1:{port}/login"):
                yield f"http://127.0.0.1:{port}"

    def test_one_comes_back_to_the_page_first_asked_for(self, app: Flask, door: str, smtp: Server) -> None:
        visitor = Visitor(door)
        visitor.open("/reports/2026?a=1&b=2")
        assert visitor.path == "/login"
        # What the pages load comes from us, and is not a sign-in page.
        for loaded in re.findall(r'<(?:link|script|img)[^>]* (?:href|src)="([^"]+)"', visitor.page.text):
            assert visitor.http.get(loaded).headers["Content-Type"].split(";")[0] in LOADED, loaded
        signup = re.findall(r'href="(/signup[^"]*)"', visitor.page.text)[-1]
        visitor.open(signup)
        visitor.submit(signup, username="mick19", full_name="Mick Müller", email="mick@example.com", password=PASSWORD)
        send_due_mails(app)
        visitor.open(smtp.mails[0].link)
        visitor.submit("/verify")
        assert str(visitor.page.url) == f"{door}/reports/2026?a=1&b=2"
        assert visitor.text.startswith("Hello Mick Müller, you are number ")
        # Forged headers make nobody someone else.
        forged = {"Remote-User": "999", "Remote-Name": "root", "Remote_User": "999"}
        assert visitor.http.get("/", headers=forged).text == visitor.page.text
        assert httpx.get(f"{door}/", headers=forged).status_code == 303
        # Nor does anybody get there without a name.
        nameless = {"Connection": "close, Remote-User, Remote-Name, Remote-Email"}
        assert visitor.http.get("/", headers=nameless).text == visitor.page.text
        assert visitor.http.post("/", headers=forged).status_code == 405
        assert {name for name in Noting.names if "remote" in name.lower()} == {
            "Remote-User",
            "Remote-Name",
            "Remote-Email",
        }
        (sign_out,) = re.findall(r'href="([^"]*)"', visitor.open("/reports").text)
        visitor.open(sign_out)
        visitor.submit("/logout")
        assert visitor.path == "/login"
        assert "You're signed out." in visitor.text
        assert "Please sign in first." not in visitor.text
        visitor.open("/reports")
        assert visitor.path == "/login"


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_the_front_door_gets_a_request_as_a_whole(tmp_path: Path, proxy: str) -> None:
    posts: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        said = connection.recv(65536)
        if said.startswith(b"POST"):
            posts.append(said)
            while said.count(b"a" * 1000) < 7:
                said += connection.recv(65536)
        connection.sendall(OK)

    with behind_proxy(proxy, tmp_path, answer) as (port, _), socket.create_connection(("127.0.0.1", port), 20) as slow:
        host = f"127.0.0.1:{port}"
        slow.sendall(f"POST /login HTTP/1.1\r\nHost: {host}\r\nContent-Length: 7000\r\n\r\n{'a' * 5000}".encode())
        # Time for what came to be passed on, if that can happen. A slow machine may hide it, but fails nothing.
        time.sleep(1)
        assert posts == []
        slow.sendall(b"a" * 2000)
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
    assert posts


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_a_link_that_gets_no_answer_is_in_no_log(tmp_path: Path, proxy: str) -> None:
    def answer(connection: socket.socket) -> None:
        if connection.recv(65536).startswith(b"GET /login "):
            connection.sendall(OK)
        connection.shutdown(socket.SHUT_RDWR)

    with behind_proxy(proxy, tmp_path, answer) as (port, process):

        def logged() -> str:
            return process.log + "".join(file.read_text("utf-8") for file in tmp_path.glob("*.log"))

        for path in (*(f"{path}/secret" for path in links.PATHS.values()), "/forgot?last"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}", timeout=20).status_code == 502
        wait_until(lambda: "/forgot?last" in logged(), "it logs nothing")
        assert "secret" not in logged()


def documented_caddyfile() -> str:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    return str(re.findall(r"```caddyfile\n(.*?)```", text, re.DOTALL)[0])


def test_the_example_and_the_documented_caddyfile_can_be_read(tmp_path: Path) -> None:
    # The example, even by Debian's.
    for text in ((EXAMPLE / "Caddyfile").read_text("utf-8"), for_installed_caddy(documented_caddyfile())):
        (tmp_path / "Caddyfile").write_text(text, "utf-8")
        command = [installed("caddy"), "adapt", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
        subprocess.run(command, env={"HOME": str(tmp_path)}, check=True)


@pytest.mark.parametrize("example", ["nginx.conf", "Caddyfile"])
@pytest.mark.parametrize("backend", [Embedded.name], indirect=True)
def test_each_page_of_ours_is_reached_and_nothing_that_is_for_machines(environ: dict[str, str], example: str) -> None:
    ours = re.compile(max(re.findall(r"\^/\S+", (EXAMPLE / example).read_text("utf-8")), key=len))
    # Which also has the mailbox that the waiting page links to.
    app = create_app({**environ, "APP_ENV": "development"})
    rules = {rule.rule for rule in app.url_map.iter_rules() if is_ours(app.view_functions[rule.endpoint])}
    assert {rule for rule in rules if not ours.search(rule)} == {
        *("/", "/auth", "/livez", "/readyz", "/metrics"),
        # The app has its own.
        "/robots.txt",
    }


def is_ours(view: Callable[..., Any]) -> bool:
    return view.__module__.startswith("webapp.")


def test_docker_compose_starts_the_same() -> None:
    services = yaml.safe_load((EXAMPLE / "docker-compose.yml").read_text("utf-8"))["services"]
    caddyfile = (EXAMPLE / "Caddyfile").read_text("utf-8")
    # Nobody gets around the proxy: the other services listen only in its network, where it looks for them.
    assert services["proxy"]["ports"] == ["127.0.0.1:8080:8080"]
    inside = {name for name, service in services.items() if service.get("network_mode") == "service:proxy"}
    assert inside == {"migrate", "web", "worker", "app"}
    for name, address in (("web", "127.0.0.1:8000"), ("app", "127.0.0.1:9000")):
        assert services[name]["command"].endswith(f"--bind {address}")
        assert f"reverse_proxy {address}" in caddyfile
    config.load({**services["web"]["environment"], "SECRET_KEY": secrets.token_urlsafe(32)})
    assert f"{services['web']['environment']['PUBLIC_URL']} {{" in caddyfile
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (EXAMPLE / source).is_file(), name
        assert (EXAMPLE / service.get("build", ".")).is_dir()
    assert (EXAMPLE / services["web"]["build"] / "Dockerfile").is_file()


class Noting(WSGIRequestHandler):
    """Notes the names of headers before Werkzeug drops some: not every server drops them."""

    names: ClassVar[set[str]] = set()

    def make_environ(self) -> Any:
        self.names.update(self.headers)
        return super().make_environ()


@contextmanager
def served(app: Flask, handler: type[WSGIRequestHandler] | None = None) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def nginx(folder: Path, ports: dict[str, int]) -> list[str]:
    (folder / "nginx.conf").write_text(on_ports("nginx.conf", ports), "utf-8")
    config = shutil.copy(EXAMPLE / "trial.conf", folder)
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)]


def caddy(folder: Path, ports: dict[str, int]) -> list[str]:
    """The example as on a server: its log has no links, and the front door gets whole requests."""
    options = documented_caddyfile().partition("signup.example.com")[0]
    site = on_ports("Caddyfile", ports).replace("# request_buffers", "request_buffers")
    # Its admin port is shared by the whole machine.
    config = folder / "Caddyfile"
    config.write_text(for_installed_caddy(options.replace("{", "{\n\tadmin off", 1) + site), "utf-8")
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


PROXIES = {"nginx": nginx, "caddy": caddy}


def on_ports(example: str, ports: dict[str, int]) -> str:
    site = (EXAMPLE / example).read_text("utf-8")
    for written, used in ports.items():
        site = site.replace(f"127.0.0.1:{written}", f"127.0.0.1:{used}")
    return site


@contextmanager
def running(command: list[str], folder: Path, url: str) -> Iterator[Process]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    with Process(*command, environ=environ) as process:

        def answers() -> bool:
            try:
                return httpx.get(url).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(lambda: answers() or process.popen.poll() is not None, f"{command[0]} does not answer")
        assert process.popen.poll() is None, process.log
        yield process


@contextmanager
def behind_proxy(proxy: str, folder: Path, answer: Handler) -> Iterator[tuple[int, Process]]:
    """Run the proxy in front of a front door that answers so; yield its port, and the proxy."""
    installed(proxy)
    port = free_port()
    with listening(answer) as own:
        command = PROXIES[proxy](folder, {"8080": port, "8000": own, "9000": own})
        with running(command, folder, f"http://127.0.0.1:{port}/login") as process:
            yield port, process
