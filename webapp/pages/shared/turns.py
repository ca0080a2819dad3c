"""Forms take turns: however many one network sends at once, they wait behind each other and hold up nobody else.

A form that waits for its turn takes no thread meanwhile: gunicorn.conf.py has it served anew when it is called. Under
servers that cannot do that, nobody waits here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from flask import Flask, request
from werkzeug.exceptions import TooManyRequests

from webapp.pages.shared import rate_limits

log = structlog.get_logger(__name__)

# Forms that a process works on at a time: more than can hash, since they wait for the database too; fewer than it has
# threads, so that pages and health checks find one free.
PLACES = 8

# Forms that wait in a process: well under the 1000 connections that gunicorn lets it have, all of which would keep out
# pages and health checks too.
ROOM = 400

# Until then some have had their turn, in seconds.
RETRY_AFTER = 10

Call = Callable[[], None]


class ComeAgain(BaseException):
    """All places are taken: the request will be called. No exception of the app's, whose handlers shall not see it."""


class Crowded(Exception):
    """A network has its share of the room that is there for waiting."""


class Turns:
    """`places` at a time; of those that wait, one of each network after the other is called.

    The networks share the `room`: who comes finds some unless its own network has its share.
    """

    def __init__(self, places: int = PLACES, room: int = ROOM) -> None:
        self.free = places
        self.room = room
        self.waiting: dict[str, deque[Call]] = {}
        self.lock = threading.Lock()

    def take(self, network: str, call: Call) -> bool:
        """Take a place, or wait for one: `call` is called once it is this request's. Raises Crowded."""
        with self.lock:
            if self.free:
                self.free -= 1
                return True
            if len(self.waiting.get(network, ())) * len(self.waiting) >= self.room:
                raise Crowded
            self.waiting.setdefault(network, deque()).append(call)
            return False

    def give_back(self) -> None:
        """Leave the place to whoever is next."""
        with self.lock:
            call = self._next()
            if call is None:
                self.free += 1
        if call:
            call()

    def _next(self) -> Call | None:
        network = next(iter(self.waiting), None)
        if network is None:
            return None
        calls = self.waiting.pop(network)
        call = calls.popleft()
        if calls:
            # Behind all others.
            self.waiting[network] = calls
        return call


@dataclass
class Ticket:
    """A request that can be served again: `serve` begins to."""

    serve: Call
    has_place: bool = False

    def call(self) -> None:
        self.has_place = True
        self.serve()


turns = Turns()
ticket: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


def init_app(app: Flask) -> None:
    app.before_request(_wait_for_turn)


@contextmanager
def held(by: Ticket) -> Iterator[None]:
    """Serve this request; its place is free afterwards. Raises ComeAgain when there was none."""
    former = ticket.set(by)
    is_over = True
    try:
        yield
    except ComeAgain:
        # By now it may have been called, and be served by another thread.
        is_over = False
        raise
    finally:
        ticket.reset(former)
        if is_over and by.has_place:
            turns.give_back()


def _wait_for_turn() -> None:
    own = ticket.get()
    if request.method != "POST" or own is None or own.has_place:
        return
    # The widest: nobody has more turns for having more addresses.
    network, _share = rate_limits.network().counted[-1]
    try:
        is_ours = turns.take(network, own.call)
    except Crowded:
        log.warning("limit_reached", limit="turns")
        raise TooManyRequests(retry_after=RETRY_AFTER) from None
    if not is_ours:
        raise ComeAgain
    own.has_place = True
