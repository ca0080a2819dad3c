"""The cost of the worst requests that a stranger can send, relative to ordinary requests to the same route."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from flask.testing import FlaskClient
from werkzeug.datastructures import MultiDict
from werkzeug.test import EnvironBuilder, run_wsgi_app

from benchmarks.measure import median
from benchmarks.report import Report
from benchmarks.rows import NO_PASSWORD
from benchmarks.stage import Stage, app_of, forget
from webapp.accounts import roles, sessions
from webapp.accounts.identifiers import email_addresses

WORST = 3.0
REPEATS = 3
# The few that look worst are measured again, often enough to be sure.
SUSPECTS = 5
SURE = 9
# For GET /auth, which proxies request all the time, relative to a page that does nothing, with the same cookie.
ASKED = 300
OF_PLAIN = 2.0
FUZZED = 6

ACCENTS = "\N{COMBINING GRAVE ACCENT}\N{COMBINING GRAVE ACCENT BELOW}"
SIGNS = "4@8({[<3691!|70$5+%2"

# Inputs that were once found to be expensive, or look as if they could be.
BODIES = {
    "accents": "a" + ACCENTS * 60_000,
    "accents that fit": "a" + ACCENTS * 255,
    "accents as a password": "a" + ACCENTS * 63,
    "ligatures": "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 128,
    "signs for letters": "4@8({[<369&10|!1$57+%24@8({[<369",
    "signs, found by search": "00f{$dh<h4133[%58e3",
    "digits, found by search": "5709729886127965212",
    "0 and 1": "0101111001001011001000010100",
    "labels": "a." * 250,
    "labels of an address": "x@" + "a." * 126 + "com",
    "labels in another script": "x@" + "\N{LATIN SMALL LETTER U WITH DIAERESIS}." * 120 + "com",
    "quoted address": '"' + "\\a" * 120 + '"@example.com',
    "a megabyte": "x" * 2**20,
    "spaces": " " * 4000 + "x",
    "digits of a number": "9" * 4000,
    "percent signs": "%" * 3000,
    "NUL": "\0" * 500,
}
HEADERS = {
    "languages": {"Accept-Language": "en;q=0.1," * 900},
    "cookies": {"Cookie": "; ".join(f"c{n}=v" for n in range(900))},
    "a long session": {"Cookie": "session=." + "eJw" * 2600},
    "a long link": {"Cookie": "link=" + "A" * 8000},
    "a long token of a form": {"Cookie": "session=" + "e" * 4000 + "." + "x" * 4000},
    "browser": {"User-Agent": "Mozilla/5.0 " * 650},
    "forwarded": {"X-Forwarded-For": "203.0.113.9, " * 620},
    "request id": {"X-Request-ID": "a" * 8000},
}
QUERIES = {"many": "&".join(f"a{n}=1" for n in range(800)), "language": "language=" + "th" * 1900}

TYPED = {"username": "mick19", "full_name": "Mick", "email": "mick@example.com", "identifier": "mick19"}
TYPED |= {"password": "correct horse battery", "new_password": "another horse battery", "code": "123456"}


class Route(NamedTuple):
    path: str
    # The fields of its form; a page has none.
    fields: tuple[str, ...] = ()


# Each page and form that strangers can reach. Add new ones here.
ROUTES = (
    *map(Route, ("/livez", "/", "/signup", "/login", "/forgot", "/verify", "/verify/AAAA", "/reset/AAAA", "/nowhere")),
    *map(Route, ("/signup/sent", "/signup/sent/progress", "/account", "/auth", "/theme.css")),
    Route("/signup", ("username", "full_name", "email", "password")),
    Route("/signup/strength", ("username", "full_name", "email", "password")),
    Route("/login", ("identifier", "password")),
    Route("/forgot", ("email",)),
    Route("/signup/email", ("email",)),
    Route("/signup/code", ("code", "username")),
    Route("/verify", ("verification", "username", "password", "new_password", "action")),
    Route("/reset", ("verification", "username", "password")),
    Route("/logout", ("next",)),
)


class Sent(NamedTuple):
    """A request, and what is odd about it."""

    name: str
    query: str = ""
    body: MultiDict[str, str] | str = ""
    headers: dict[str, str] | None = None


@dataclass
class Cost:
    sent: Sent
    status: int = 0
    milliseconds: list[float] = field(default_factory=list)


def run(stage: Stage, report: Report) -> None:
    with stage.servers(RATELIMIT_RESET="1000000/hour") as settings:
        app = app_of(settings)
        asked = identities(app)
        found = [(measure(app, route), "POST" if route.fields else "GET", route.path) for route in ROUTES]
        forget(app)
    report.say(
        "CPU of this process, in milliseconds: of ordinary requests the median, and the dearest of the others, which",
        "is compared with ordinary ones that were answered as it was (accepted, or not).",
        "",
    )
    report.table(
        ["route", "ordinary", "worst", "of the ordinary", "what it is"],
        [[f"{method} {path}", *worst[:3], worst[3]] for worst, method, path in found],
    )
    (_, _, ratio, name), method, path = max(found, key=lambda one: one[0][2])
    report.table(
        ["GET /auth", "CPU ms", "of a plain page"],
        [[name, cost, cost / plain] for name, (cost, plain) in asked.items()],
    )
    cost, plain = asked["a session"]
    report.target("GET /auth with a session, of a plain page", cost / plain, "at most", OF_PLAIN)
    report.target(f"worst request, of ordinary ones ({method} {path}: {name})", ratio, "at most", WORST)


def measure(app: Flask, route: Route) -> tuple[float, float, float, str]:
    """Return CPU milliseconds of an ordinary request and of the worst one, their ratio, and what the worst one was."""
    client = app.test_client()
    token = token_of(client)
    if route.path.startswith("/signup/"):
        client.post("/signup", data={"csrf_token": token, **TYPED})
    session = client.get_cookie("session")
    cookies = f"session={session.value}" if session else ""
    usual = [Cost(sent) for sent in ordinary(route, token)]
    others = [Cost(sent) for sent in hostile(route, token)]
    for _ in range(REPEATS):
        for cost in (*usual, *others):
            act(app, route, cost, cookies)
    suspects = sorted(others, key=lambda cost: ratio_of(cost, usual))[-SUSPECTS:]
    for _ in range(SURE):
        for cost in (*usual, *suspects):
            act(app, route, cost, cookies)
    worst = max(suspects, key=lambda cost: ratio_of(cost, usual))
    ratio = ratio_of(worst, usual)
    spent = median(worst.milliseconds)
    return spent / ratio, spent, ratio, worst.sent.name


def identities(app: Flask) -> dict[str, tuple[float, float]]:
    """Return the cost of GET /auth without a session, with one and with an ended one, and of a plain page with each."""
    app.add_url_rule("/plain", "plain", lambda: ("", 204))
    with app.app_context():
        address = email_addresses.parse_address("asked@example.com")
        user = roles.create(address, username="asked", password_hash=NO_PASSWORD, role="user")
        tokens = {"a session": sessions.begin(user), "one that ended": "ended"}
    sign = SecureCookieSessionInterface().get_signing_serializer(app)
    cookies = {name: f"session={sign.dumps({'_user_id': token})}" for name, token in tokens.items() if sign}
    asked = {
        (name, path): Cost(Sent(name, headers={"Cookie": cookie}))
        for name, cookie in {"no session": "", **cookies}.items()
        for path in ("/auth", "/plain")
    }
    for _ in range(ASKED):
        for (_name, path), cost in asked.items():
            act(app, Route(path), cost, "")
    spent = {key: median(cost.milliseconds) for key, cost in asked.items()}
    return {name: (spent[name, "/auth"], spent[name, "/plain"]) for name, path in asked if path == "/auth"}


def ratio_of(cost: Cost, usual: list[Cost]) -> float:
    alike = [one for one in usual if (one.status < 400) == (cost.status < 400)] or usual
    return median(cost.milliseconds) / median([median(one.milliseconds) for one in alike])


def token_of(client: FlaskClient) -> str:
    page = client.get("/login").text
    return page.partition('name="csrf_token" value="')[2].partition('"')[0]


def ordinary(route: Route, token: str) -> Iterator[Sent]:
    """Yield what people send: the form filled in, and one with a mistake in each field."""
    if not route.fields:
        yield from (Sent(f"page {n}") for n in range(3))
        return
    good = {"csrf_token": token, **{name: TYPED.get(name, "") for name in route.fields}}
    yield Sent("as it should be", body=MultiDict(good))
    for name, wrong in (("username", "mick 19"), ("email", "mick@"), ("password", "password"), ("code", "12")):
        if name in good:
            yield Sent(f"a wrong {name}", body=MultiDict({**good, name: wrong}))
    yield Sent("without a token", body=MultiDict({**good, "csrf_token": ""}))


def hostile(route: Route, token: str) -> Iterator[Sent]:
    yield from (Sent(f"header: {name}", headers=headers) for name, headers in HEADERS.items())
    yield from (Sent(f"query: {name}", query=query) for name, query in QUERIES.items())
    if not route.fields:
        return
    good = {"csrf_token": token, **{name: TYPED.get(name, "") for name in route.fields}}
    chance = random.Random(1)
    texts = BODIES | {f"fuzzed {n}": fuzzed(chance) for n in range(FUZZED)}
    for name in ("csrf_token", *route.fields):
        for what, text in texts.items():
            yield Sent(f"{name}: {what}", body=MultiDict({**good, name: text}))
    for what, text in texts.items():
        yield Sent(f"no token: {what}", body=MultiDict(dict.fromkeys(route.fields, text)))
    yield Sent("form: many fields", body="&".join(f"{n}" for n in range(3000)))
    yield Sent("form: nothing but &", body="&" * 16000)
    yield Sent("form: one field again and again", body="password=x&" * 1400)


def fuzzed(chance: random.Random) -> str:
    """Return a text of few different characters, as long as a password that is judged, or longer."""
    letters = chance.choice([SIGNS, "0123456789", "01", "1/-. 2", "abc123", f"{SIGNS}abcdefgh", f"a{ACCENTS}", "a.@-"])
    return "".join(chance.choice(letters) for _ in range(chance.choice([11, 16, 24, 24, 128, 500])))


def act(app: Flask, route: Route, cost: Cost, cookies: str) -> None:
    """Send the request once more, and note its cost."""
    sent = cost.sent
    headers = {**(sent.headers or {})}
    headers["Cookie"] = "; ".join(filter(None, [cookies, headers.get("Cookie", "")]))
    options: dict[str, Any] = {"query_string": sent.query, "headers": headers}
    if route.fields:
        options |= {"method": "POST", "data": sent.body, "content_type": "application/x-www-form-urlencoded"}
    environ = EnvironBuilder(route.path, **options).get_environ()
    begun = time.process_time()
    _body, status, _headers = run_wsgi_app(app, environ, buffered=True)
    cost.milliseconds.append(1000 * (time.process_time() - begun))
    cost.status = int(status[:3])
