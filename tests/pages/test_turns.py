"""Many forms at once: their sender waits behind their own forms, and nobody else does."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from urllib.parse import urlencode, urlsplit

import httpx
import pytest

from harness.processes import Process, free_port, gunicorn, wait_for_port, wait_until
from harness.visitor import Visitor
from webapp.pages.shared import turns as turns_page
from webapp.pages.shared.turns import ComeAgain, Crowded, Ticket, Turns

MANY = 60
ATTACKERS = 20
AFTER = 8
ANOTHER = "127.0.0.2"

ACCENTS = "a" + "\N{COMBINING GRAVE ACCENT}\N{COMBINING GRAVE ACCENT BELOW}" * 60_000
SIGNS = "4@8({[<369&10|!1$57+%24@8({[<369"


def test_of_those_that_wait_one_of_each_network_after_the_other_is_called() -> None:
    turns, called = Turns(places=1), list[str]()

    def come(network: str, name: str) -> None:
        if turns.take(network, lambda: called.append(name)):
            called.append(name)

    for network, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        come(network, name)
    for _ in range(6):
        turns.give_back()
    assert called == ["a1", "a2", "b1", "c1", "a3", "b2"]
    come("a", "a4")
    assert called[-1] == "a4"


def test_of_the_room_to_wait_in_each_network_has_its_share() -> None:
    turns = Turns(places=1, room=6)
    assert turns.take("a", lambda: None)

    def come(network: str, times: int) -> int:
        """Return how many of them may wait."""
        for number in range(times):
            try:
                assert not turns.take(network, lambda: None)
            except Crowded:
                return number
        return times

    assert come("a", 10) == 6
    assert come("b", 10) == 3
    assert come("c", 10) == 2
    assert come("a", 1) == 0
    for _ in range(6 + 3 + 2):
        turns.give_back()
    assert come("a", 10) == 6


def test_who_finds_no_room_to_wait_in_is_told_when_to_come_again(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_page, "turns", Turns(places=0, room=1))
    visitor.open("/login")
    with turns_page.held(Ticket(lambda: None)):
        with pytest.raises(ComeAgain):
            visitor.submit("/login", identifier="mick19", password="wrong")
        visitor.open("/login")
        visitor.submit("/login", identifier="mick19", password="wrong")
    assert (visitor.page.status_code, visitor.page.headers["Retry-After"]) == (429, "10")


@pytest.fixture
def web(process_environ: dict[str, str]) -> Iterator[tuple[Process, str]]:
    """A web server with two processes, as everywhere, and slow password hashes; yields its URL."""
    port = free_port()
    settings = {"PASSWORD_HASH_PASSES": "6", "LOG_FORMAT": "json"}
    # A request sent just as an idle connection is closed gets no answer: here none is idle for that long.
    with gunicorn({**process_environ, **settings}, port, "--timeout", "10", "--keep-alive", "60") as web:
        wait_for_port(port, 60)
        yield web, f"http://127.0.0.1:{port}"
        assert "WORKER TIMEOUT" not in web.log
        assert web.stop() == 0


@pytest.fixture
def come_from() -> Iterator[Callable[[str, str], Visitor]]:
    """Make visitors with an IP address of this machine."""
    with ExitStack() as stack:

        def come(ip: str, url: str) -> Visitor:
            visitor = Visitor(url)
            transport = httpx.HTTPTransport(local_address=ip)
            client = httpx.Client(base_url=url, transport=transport, follow_redirects=True, timeout=110)
            visitor.http = stack.enter_context(client)
            return visitor

        yield come


def test_sixty_sign_ins_of_one_network_hold_up_nobody_else(
    web: tuple[Process, str], come_from: Callable[[str, str], Visitor]
) -> None:
    _, url = web
    one, another = come_from("127.0.0.1", url), come_from(ANOTHER, url)
    one.open("/login")
    form = one.hidden("/login")

    def sign_in(number: int) -> int:
        return one.http.post("/login", data={**form, "identifier": f"mick{number}", "password": "wrong"}).status_code

    with ThreadPoolExecutor(MANY) as pool:
        many = [pool.submit(sign_in, number) for number in range(MANY)]
        wait(many, return_when=FIRST_COMPLETED)
        # They are waiting now. Anyone served before most of them does not wait behind them.
        for path in ("/livez", "/login", "/signup"):
            assert another.open(path).status_code == 200
        another.sign_up()
        assert another.path == "/signup/sent"
        assert count_done(many) < MANY * 3 / 4
        # And each of them gets an answer in the end.
        assert {done.result() for done in many} == {422}


def test_who_hangs_up_while_waiting_takes_no_turn(
    web: tuple[Process, str], come_from: Callable[[str, str], Visitor]
) -> None:
    process, url = web
    one = come_from("127.0.0.1", url)
    one.open("/login")
    form = {**one.hidden("/login"), "identifier": "mick19", "password": "wrong"}
    cookie = "; ".join(f"{each.name}={each.value}" for each in one.http.cookies.jar)
    body = urlencode(form)
    head = (
        f"POST /login HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    for _ in range(MANY):
        with socket.create_connection(("127.0.0.1", urlsplit(url).port or 80)) as connection:
            connection.sendall(f"{head}{body}".encode())
    # They come before these, from the same network, in both processes.
    with ThreadPoolExecutor(AFTER) as pool:
        list(pool.map(lambda _: one.http.post("/login", data=form), range(AFTER)))
    served = [event for event in process.events("request") if event["rule"] == "/login" and event["method"] == "POST"]
    assert len(served) < AFTER + MANY * 3 / 4


def test_who_keeps_a_connection_open_after_the_answer_holds_up_nobody(process_environ: dict[str, str]) -> None:
    port = free_port()
    with gunicorn(process_environ, port, "--timeout", "10") as web, ExitStack() as held:
        wait_for_port(port, 60)
        for _ in range(MANY):
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        # 2 s for each of them would be a minute in each process.
        assert httpx.get(f"http://127.0.0.1:{port}/livez", timeout=15).status_code == 200
        assert "WORKER TIMEOUT" not in web.log


def test_the_answer_to_a_body_that_is_too_long_is_read_to_its_end(process_environ: dict[str, str]) -> None:
    port = free_port()
    with gunicorn(process_environ, port) as _, ExitStack() as held:
        wait_for_port(port, 60)
        connection = held.enter_context(socket.create_connection(("127.0.0.1", port)))
        connection.settimeout(30)
        connection.sendall(b"POST /signup HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n")
        connection.sendall(b"x" * 4_000_000)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.rstrip().endswith(b"</html>")


def count_done(futures: list[Future[int]]) -> int:
    return sum(future.done() for future in futures)


@pytest.mark.parametrize("password", [ACCENTS, SIGNS], ids=["accents", "signs"])
def test_whatever_passwords_strangers_send_everybody_is_served(
    web: tuple[Process, str], come_from: Callable[[str, str], Visitor], password: str
) -> None:
    _, url = web
    attacker, another = come_from("127.0.0.1", url), come_from(ANOTHER, url)
    is_over = False

    def attack() -> set[int]:
        statuses = set()
        while not is_over:
            # Neither cookie nor token, like a form with a file.
            files = {"password": (None, password.encode())}
            statuses.add(attacker.http.post("/signup", files=files).status_code)
        return statuses

    with ThreadPoolExecutor(ATTACKERS) as pool:
        attacks = [pool.submit(attack) for _ in range(ATTACKERS)]
        try:
            for number in range(2):
                assert another.open("/livez").status_code == 200
                another.sign_up(username=f"mick{number}", email=f"mick{number}@example.com")
                assert another.path == "/signup/sent"
        finally:
            is_over = True
        wait_until(lambda: all(done.done() for done in attacks), "an attacker got no answer", 60)
        assert set().union(*(done.result() for done in attacks)) <= {400, 413}
