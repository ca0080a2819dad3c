"""A person with a browser: follows links, fills in forms, keeps cookies."""

from __future__ import annotations

import re
import ssl
from html import unescape
from html.parser import HTMLParser
from typing import Any

import httpx
from flask import Flask

from webapp.accounts.users import OWN_FIELDS

# The required fields in own/fields.py; visitors fill them in.
ASKED_FOR = {column.name: "x" for column in OWN_FIELDS if column.info.get("required")}

PASSWORD = "correct horse battery"  # noqa: S105 - a test's own


class Visitor:
    """`page`: the last response. Redirects are followed, so its URL is where the person ended up."""

    def __init__(
        self,
        base_url: str,
        app: Flask | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        ip: str = "127.0.0.1",
    ) -> None:
        self.http = httpx.Client(
            base_url=base_url,
            transport=httpx.WSGITransport(app=app, remote_addr=ip) if app else None,
            verify=tls or True,
            follow_redirects=True,
            timeout=20,
            # Nothing stays open between requests, so there is nothing to close.
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self.page: httpx.Response

    def open(self, url: str, *, follow: bool = True) -> httpx.Response:
        self.page = self.http.get(url, follow_redirects=follow)
        return self.page

    def submit(self, action: str, /, *, follow: bool = True, **fields: Any) -> httpx.Response:
        """Submit the page's form with this action, after filling in `fields`."""
        asked_for = {name: text for name, text in ASKED_FOR.items() if f'name="{name}"' in self.page.text}
        data = {**self.hidden(action), **asked_for, **fields}
        self.page = self.http.post(action, data=data, follow_redirects=follow)
        return self.page

    def hidden(self, action: str) -> dict[str, str]:
        """Return the hidden fields of the page's form with this action."""
        form = re.search(rf'<form[^>]*action="{re.escape(action)}".*?</form>', self.page.text, re.DOTALL)
        assert form, f"no form for {action} on this page:\n{self.text}"
        inputs = [dict(re.findall(r'([\w-]+)="([^"]*)"', tag)) for tag in re.findall(r"<input[^>]*>", form[0])]
        return {tag["name"]: unescape(tag.get("value", "")) for tag in inputs if tag.get("type") == "hidden"}

    def sign_up(self, **fields: str) -> httpx.Response:
        self.open("/signup")
        defaults = {"username": "mick19", "full_name": "", "email": "mick@example.com", "password": PASSWORD}
        return self.submit("/signup", follow=True, **{**defaults, **fields})

    @property
    def text(self) -> str:
        """The visible text of the page, without its header."""
        reader = Reader()
        reader.feed(self.page.text)
        return " ".join(" ".join(reader.words).split())

    @property
    def path(self) -> str:
        return self.page.url.path


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.silent = 0

    def handle_starttag(self, tag: str, _attrs: Any) -> None:
        self.silent += tag in {"head", "style", "script", "header"}

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in {"head", "style", "script", "header"}

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.words.append(data)
