"""People who keep signing up, a few a second, whatever happens."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import httpx

from harness.visitor import PASSWORD, Visitor

THREADS = 3
PATIENCE = 10
# One address in this many does not exist.
REFUSED_EVERY = 40


class Load:
    """`rate`: signups a second. `limit`: how many in all; by default they never end."""

    def __init__(self, url: str, *, rate: float, limit: int | None = None, threads: int = THREADS) -> None:
        self.url = url
        self.pause = threads / rate
        self.limit = limit
        self.numbers = itertools.count(1)
        self.answers: Counter[str] = Counter()
        self.acknowledged: list[str] = []
        self.seconds: list[float] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=[n / rate], daemon=True) for n in range(threads)]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        self.over.set()
        self.wait()

    def wait(self) -> None:
        for thread in self.threads:
            thread.join()

    def _run(self, first: float) -> None:
        visitor = Visitor(self.url)
        visitor.http.timeout = httpx.Timeout(PATIENCE)
        pause = first
        while not self.over.wait(pause):
            begun = time.monotonic()
            number = next(self.numbers)
            if self.limit is not None and number > self.limit:
                return
            self._sign_up(visitor, number)
            pause = max(0.0, begun + self.pause - time.monotonic())

    def _sign_up(self, visitor: Visitor, number: int) -> None:
        kind = "refused" if self.limit is None and number % REFUSED_EVERY == 0 else "user"
        visitor.http.cookies.clear()
        try:
            visitor.open("/signup")
            if visitor.page.status_code != 200:
                self.answers[f"{visitor.page.status_code} for the form"] += 1
                return
            begun = time.monotonic()
            fields = {"username": f"{kind}{number}", "email": f"{kind}{number}@example.com", "full_name": ""}
            visitor.submit("/signup", follow=False, password=PASSWORD, **fields)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
        else:
            self.answers[str(visitor.page.status_code)] += 1
            if visitor.page.status_code == 303:
                self.seconds.append(time.monotonic() - begun)
                self.acknowledged.append(fields["email"])
