"""Whether timing reveals who has an account: the same request for new, pending and verified addresses, in turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import psycopg
from flask import Flask

from benchmarks.client import PASSWORD, Browser
from benchmarks.measure import Timer, percentile
from benchmarks.report import Report
from benchmarks.stage import Stage, app_of, forget
from webapp.accounts import passwords, roles, signup
from webapp.accounts.identifiers import email_addresses

TIMES = 200
WARM_UP = 10
LIMIT_MS = 5.0

KINDS = ("new", "pending", "verified")
PENDING, VERIFIED = "pending@example.com", "verified@example.com"
numbers = count(1)


def run(stage: Stage, report: Report) -> None:
    with (
        stage.servers() as settings,
        stage.web(settings) as (_, port),
        psycopg.connect(settings["DATABASE_URL"], autocommit=True) as database,
    ):
        prepare(app_of(settings))
        report.say(f"{TIMES} requests of each kind, in random order; medians in milliseconds.", "")
        acts = {"signup": signups(port), "sign-in": sign_ins(port), "resend": resends(port, database)}
        timers = {name: interleave(act) for name, act in acts.items()}
        report.table(
            ["request", *KINDS, "largest difference", "p95 new", "p95 verified"],
            [
                [
                    name,
                    *[found[kind].median for kind in KINDS],
                    difference(found),
                    percentile(found["new"].values, 0.95),
                    percentile(found["verified"].values, 0.95),
                ]
                for name, found in timers.items()
            ],
        )
        for name, found in timers.items():
            report.target(f"difference of {name} medians, ms", difference(found), "at most", LIMIT_MS)


def prepare(app: Flask) -> None:
    """Create a pending signup and a verified account."""
    with app.app_context():
        password_hash = passwords.hash(PASSWORD)
        address = email_addresses.parse_address(PENDING)
        signup.sign_up(username="pending", full_name="", address=address, password_hash=password_hash, locale="en")
        address = email_addresses.parse_address(VERIFIED)
        roles.create(address, username="verified", password_hash=password_hash, role="user")
    forget(app)


def interleave(act: Callable[[str], Callable[[], None]]) -> dict[str, Timer]:
    """Time the function that `act` prepares for each kind of address; no kind always comes first."""
    timers = {kind: Timer() for kind in KINDS}
    for turn in range(WARM_UP + TIMES):
        if turn == WARM_UP:
            timers = {kind: Timer() for kind in KINDS}
        for kind in random.sample(KINDS, len(KINDS)):
            timers[kind].run(act(kind))
    return timers


def difference(timers: dict[str, Timer]) -> float:
    medians = [timer.median for timer in timers.values()]
    return max(medians) - min(medians)


def address_of(kind: str) -> str:
    return {"new": f"new{next(numbers)}@example.com", "pending": PENDING, "verified": VERIFIED}[kind]


def signups(port: int) -> Callable[[str], Callable[[], None]]:
    browser = Browser(port)
    browser.open("/signup")

    def prepare(kind: str) -> Callable[[], None]:
        address = address_of(kind)
        return lambda: browser.sign_up(address)

    return prepare


def sign_ins(port: int) -> Callable[[str], Callable[[], None]]:
    browser = Browser(port)
    browser.open("/login")

    def prepare(kind: str) -> Callable[[], None]:
        address = address_of(kind)
        return lambda: browser.post("/login", expected=422, identifier=address, password="not the password")

    return prepare


def resends(port: int, database: psycopg.Connection) -> Callable[[str], Callable[[], None]]:
    """Three browsers, signed up with one kind of address each, ask again, each time after their email was sent."""
    browsers = {}
    for kind in KINDS:
        browsers[kind] = browser = Browser(port)
        browser.open("/signup")
        browser.sign_up(address_of(kind), keep=True)
        browser.open("/signup/sent")

    def prepare(kind: str) -> Callable[[], None]:
        database.execute("UPDATE outgoing_emails SET status = 'sent', sent_at = now() WHERE status = 'queued'")
        return lambda: browsers[kind].post("/signup/resend")

    return prepare
