"""Forms take turns: however many one network sends at once, they wait for each other and delay nobody else.

A form that waits for its turn takes no thread: gunicorn.conf.py serves it again when its turn comes. Under servers that
cannot do that, forms do not wait here.
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

# Forms that a process works on at a time: more than can hash, since they also wait for the database; fewer than it has
# threads, so that one is free for pages and health checks.
PLACES = 8

# Forms that wait in a process: well under the 1000 connections that gunicorn allows it, since pages and health checks
# need some too.
ROOM = 400

# In seconds: by then, some have had their turn.
RETRY_AFTER = 10

Call = Callable[[], None]


class ComeAgain(BaseException):
    """All places are taken: the request is called later. Not an Exception, which error handlers would catch."""


class Crowded(Exception):
    """The network has used up its share of the room for waiting."""


class Turns:
    """`places` at a time; waiting requests are called in turn, one network after the other.

    The networks share the `room`: a request finds some unless its own network has used up its share.
    """

    def __init__(self, places: int = PLACES, room: int = ROOM) -> None:
        self.free = places
        self.room = room
        self.waiting: dict[str, deque[Call]] = {}
        self.lock = threading.Lock()

    def take(self, network: str, call: Call) -> bool:
        """Take a place and return True, or wait: `call` is called once there is one for it. Raises Crowded."""
        with self.lock:
            if self.free:
                self.free -= 1
                return True
            if len(self.waiting.get(network, ())) * len(self.waiting) >= self.room:
                raise Crowded
            self.waiting.setdefault(network, deque()).append(call)
            return False

    def give_back(self) -> None:
        """Give the place to the next request."""
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
            # Behind all other networks.
            self.waiting[network] = calls
        return call


@dataclass
class Ticket:
    """A request that can be served again, by calling `serve`."""

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
    """Serve this request, and free its place afterwards. Raises ComeAgain if there was none."""
    former = ticket.set(by)
    is_over = True
    try:
        yield
    except ComeAgain:
        # By now another thread may have been called to serve it.
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
    # The widest network: more addresses do not give more turns.
    network, _share = rate_limits.network().counted[-1]
    try:
        is_ours = turns.take(network, own.call)
    except Crowded:
        log.warning("limit_reached", limit="turns")
        raise TooManyRequests(retry_after=RETRY_AFTER) from None
    if not is_ours:
        raise ComeAgain
    own.has_place = True
