"""The people, their browsers, and what their visits have in common."""

from __future__ import annotations

import itertools
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from chaos.soak.stage import Mailbox
from harness.smtp_server import Mail
from harness.visitor import PASSWORD, Visitor

# At most so many visits at once.
PLACES = 40
# How long a visitor waits for an email.
PATIENCE = 60.0
# Nothing is encrypted here, and loading all root certificates takes longer than a page.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Unexpected(Exception):
    """A visitor got the wrong page, or no email."""


class Closed(Exception):
    """The run is over."""


@dataclass
class Account:
    username: str
    email: str
    password: str = PASSWORD


@dataclass
class Seen:
    """What visitors saw in one hour: response times and statuses."""

    signups: int = 0
    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


class Town:
    """`newcomers`, `members`: journeys with their weights; `accounts`: those of people who are not visiting now."""

    def __init__(
        self,
        url: str,
        mailbox: Mailbox,
        *,
        newcomers: Mapping[Journey, int],
        members: Mapping[Journey, int],
        seed: int,
    ) -> None:
        self.url = url
        self.mailbox = mailbox
        self.newcomers = newcomers
        self.members = members
        self.rng = random.Random(seed)  # noqa: S311 - no secret
        self.numbers = itertools.count(1)
        self.accounts: list[Account] = []
        self.acknowledged: list[str] = []
        self.failures: list[str] = []
        self.errors: list[str] = []
        self.seen = Seen()
        self.over = threading.Event()
        self.pool = ThreadPoolExecutor(PLACES)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.pool.shutdown(cancel_futures=True)

    def crowd(self) -> None:
        """Let as many people as possible sign up at once, and wait until they have left."""
        wait([self.newcomer() for _ in range(PLACES)])

    def finish(self) -> None:
        """Wait until everybody has left."""
        self.pool.shutdown()

    def hour(self) -> Seen:
        """Return what was seen since the last call."""
        seen, self.seen = self.seen, Seen()
        return seen

    def newcomer(self) -> Future[None]:
        n = next(self.numbers)
        return self.send(self._one_of(self.newcomers), Account(f"person{n}", f"person{n}@town{n % 50}.example"))

    def member(self) -> None:
        if self.accounts:
            account = self.accounts.pop(self.rng.randrange(len(self.accounts)))
            self.send(self._one_of(self.members), account, is_member=True)

    def send(self, journey: Journey, account: Account, *, is_member: bool = False) -> Future[None]:
        visit = Visit(self, account, random.Random(self.rng.random()), is_member=is_member)  # noqa: S311 - no secret
        return self.pool.submit(self._visit, journey, visit)

    def _one_of(self, journeys: Mapping[Journey, int]) -> Journey:
        return self.rng.choices(list(journeys), list(journeys.values()))[0]

    def _visit(self, journey: Journey, visit: Visit) -> None:
        try:
            journey(visit)
        except Closed:
            return
        except Exception as error:  # noqa: BLE001 - any failure is part of the verdict
            self.failures.append(f"{journey.__name__}, {visit.account.email}: {type(error).__name__}: {error}"[:500])
            return
        if visit.is_member:
            self.accounts.append(visit.account)


class Browser(Visitor):
    """A browser with its own IP address, whose responses are recorded."""

    def __init__(self, town: Town, ip: str) -> None:
        super().__init__(town.url, tls=NO_TLS)
        self.http.headers["X-Forwarded-For"] = ip
        self.town = town

    def open(self, url: str, *, follow: bool = True) -> httpx.Response:
        return self._note(super().open(url, follow=follow))

    def submit(self, action: str, /, *, follow: bool = True, **fields: Any) -> httpx.Response:
        return self._note(super().submit(action, follow=follow, **fields))

    def _note(self, page: httpx.Response) -> httpx.Response:
        for answer in [*page.history, page]:
            self.town.seen.seconds.append(answer.elapsed.total_seconds())
            self.town.seen.statuses.append(answer.status_code)
            if answer.status_code >= 500:
                self.town.errors.append(f"{answer.status_code} at {answer.url.path}")
        return page

    def must_be_at(self, path: str) -> None:
        if self.path != path or self.page.status_code >= 400:
            raise Unexpected(f"{self.page.status_code} at {self.path} instead of {path}: {self.text[:200]}")

    def must_read(self, words: str) -> None:
        if words not in self.text:
            raise Unexpected(f"{self.page.status_code} at {self.path} without {words!r}: {self.text[:200]}")

    def must_be_refused(self) -> None:
        if self.page.status_code != 422:
            raise Unexpected(f"{self.page.status_code} at {self.path} instead of 422: {self.text[:200]}")


@dataclass
class Visit:
    """One visit of one person; `is_member`: whether the account exists."""

    town: Town
    account: Account
    rng: random.Random
    is_member: bool

    def browser(self) -> Browser:
        a, b, c = (self.rng.randrange(1, 255) for _ in range(3))
        ip = f"2001:db8:{a:x}{b:02x}:{c:x}::1" if self.chance(0.3) else f"10.{a}.{b}.{c}"
        return Browser(self.town, ip)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def wait(self, seconds: float) -> None:
        if self.town.over.wait(seconds):
            raise Closed

    def think(self) -> None:
        self.wait(self.rng.uniform(0.2, 1))

    def sign_up(self, email: str | None = None, username: str | None = None) -> Browser:
        """Sign up; return the browser, at the waiting page."""
        account = self.account
        browser = self.browser()
        browser.open("/")
        browser.open("/signup")
        self.think()
        address = email or account.email
        name = username or account.username
        browser.submit("/signup", username=name, full_name="", email=address, password=account.password)
        browser.must_be_at("/signup/sent")
        self.town.acknowledged.append(address)
        self.town.seen.signups += 1
        return browser

    def sign_in(self) -> Browser:
        """Sign in by name or address; return the browser, at the account."""
        browser = self.browser()
        browser.open("/login")
        self.think()
        name = self.account.username if self.chance(0.5) else self.account.email
        browser.submit("/login", identifier=name, password=self.account.password)
        browser.must_be_at("/account")
        return browser

    def mail(self, path: str, address: str | None = None, *, since: float, watching: Browser | None = None) -> Mail:
        """Wait for an email with a link of this kind, and watch the page meanwhile, as its script does."""
        address = address or self.account.email
        while True:
            for mail in self.town.mailbox.to(address):
                if mail.at >= since and path in mail.text:
                    return mail
            if time.monotonic() > since + PATIENCE:
                raise Unexpected(f"no email with {path} to {address} within {PATIENCE:.0f} s")
            self.wait(1)
            if watching:
                watching.open("/signup/sent/progress")


Journey = Callable[[Visit], None]
