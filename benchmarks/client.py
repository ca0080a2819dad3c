"""A cheap browser: it keeps cookies, its connection, and one form's token."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.cookies import SimpleCookie
from urllib.parse import urlencode

from benchmarks.measure import Timer

PASSWORD = "correct horse battery"
WEAK = "password"

numbers = itertools.count(1)


class Refused(Exception):
    """A response had an unexpected status."""


class Browser:
    """`open` keeps the page's cookies and form token; `post` sends them and keeps nothing, so it can be repeated."""

    def __init__(self, port: int) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self.cookies: dict[str, str] = {}
        self.token = ""

    def open(self, path: str) -> str:
        response, body = self._ask("GET", path, "")
        if response.status != 200:
            raise Refused(f"GET {path}: {response.status}")
        self._take_cookies(response)
        if found := re.search(r'name="csrf_token"[^>]*value="([^"]+)"', body):
            self.token = found[1]
        return body

    def post(self, path: str, *, expected: int = 303, keep: bool = False, **fields: str) -> None:
        """Send the form; with `keep`, keep the response's cookies."""
        response, _ = self._ask("POST", path, urlencode({"csrf_token": self.token, **fields}))
        if response.status != expected:
            raise Refused(f"POST {path}: {response.status}")
        if keep:
            self._take_cookies(response)

    def sign_up(self, email: str = "", password: str = PASSWORD, *, expected: int = 303, keep: bool = False) -> None:
        name = f"person{next(numbers)}"
        fields = {"username": name, "full_name": "", "email": email or f"{name}@example.com", "password": password}
        self.post("/signup", expected=expected, keep=keep, **fields)

    def _ask(self, method: str, path: str, body: str) -> tuple[HTTPResponse, str]:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if body:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
        except (HTTPException, ConnectionError):
            # The server closes connections that are idle for two seconds.
            self.connection.close()
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
        return response, response.read().decode()

    def _take_cookies(self, response: HTTPResponse) -> None:
        for header in response.headers.get_all("Set-Cookie", []):
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(header).items()}


def in_parallel(browsers: list[Browser], times: int, act: Callable[[Browser], object]) -> Timer:
    """Let each browser act this many times, all in parallel; return how long each act took."""
    timer = Timer()

    def run(browser: Browser) -> None:
        for _ in range(times):
            timer.run(lambda: act(browser))

    threads = [threading.Thread(target=run, args=[browser]) for browser in browsers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return timer
