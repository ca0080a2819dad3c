"""Rate limits: counted where all web servers see them, by what was requested, never by whether it exists."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import cast

import structlog
from flask import Flask, current_app, request
from limits import RateLimitItem
from limits.strategies import MovingWindowRateLimiter
from werkzeug.exceptions import TooManyRequests

from webapp.extensions import huey
from webapp.pages.shared import networks
from webapp.pages.shared.networks import Network
from webapp.queue.broker_breaker import BrokerDown
from webapp.queue.storage import limits_storage

log = structlog.get_logger(__name__)


def init_app(app: Flask) -> None:
    # Moving windows: with fixed ones, twice as many requests would pass around each full hour.
    app.extensions["limiter"] = MovingWindowRateLimiter(limits_storage(app.config))


def spend(limit: str, key: str | Network) -> None:
    """Count one request. Raises TooManyRequests if there were too many already.

    `limit`: the setting's name; `key`: requests with the same key are counted together.
    """
    for item, name in _counted(limit, key):
        _ask(limit, item, name, spends=True)


def spent(limit: str, network: Network) -> int:
    """Return how many requests of the network itself were counted within the shortest window of the limit.

    1 if that is unknown.
    """
    name, share = network.counted[0]
    item = min(current_app.config[limit], key=RateLimitItem.get_expiry, default=None)
    if item is None:
        return 1
    own = type(item)(item.amount * share, item.multiples)
    try:
        with _breaker():
            stats = _limiter().get_window_stats(own, *_identifiers(limit, name))
    except BrokerDown:
        return 1
    return int(own.amount - stats.remaining)


def check(limit: str, key: str | Network) -> None:
    """Raise TooManyRequests if there were too many requests; count nothing."""
    for item, name in _counted(limit, key):
        _ask(limit, item, name, spends=False)


def _counted(limit: str, key: str | Network) -> Iterator[tuple[RateLimitItem, str]]:
    """Yield what the request counts for: a network's own limit before those of the wider networks around it.

    So a network that is over its own limit uses up nothing that others share.
    """
    for name, share in key.counted if isinstance(key, Network) else ((key, 1),):
        for item in current_app.config[limit]:
            yield type(item)(item.amount * share, item.multiples), name


@contextmanager
def guessing(account: str, *, known_by: str | None = None) -> Iterator[Guess]:
    """Limit the guesses at a password: at one account from everywhere, and at all accounts from one network.

    `account`: what was typed to name it. `known_by`: the session, link or browser that we recognize. Each of those has
    a count of its own, so that nobody else's wrong tries lock an owner out, not even from the same network.
    Raises TooManyGuesses.
    """
    if known_by is None:
        check("RATELIMIT_LOGIN_IP", network())
    limit, key = ("RATELIMIT_LOGIN_ACCOUNT", account) if known_by is None else ("RATELIMIT_LOGIN_KNOWN", known_by)
    # Counted before the check: otherwise many guesses at once would all be checked.
    spend(limit, key)
    guess = Guess()
    yield guess
    if guess.is_right:
        if guess.ends_count:
            _forget(limit, key)
    elif known_by is None:
        spend("RATELIMIT_LOGIN_IP", network())


@dataclass
class Guess:
    """`ends_count`: whether a right guess resets the count."""

    is_right: bool = False
    ends_count: bool = True


class TooManyGuesses(TooManyRequests):
    """Too many guesses at a password: the page offers to reset it without waiting."""


def forgive(*accounts: str) -> None:
    """Reset the counts of guesses at these accounts: their owner proved who they are in another way."""
    for account in accounts:
        _forget("RATELIMIT_LOGIN_ACCOUNT", account)


def network() -> Network:
    """Return the network that this request counts for."""
    return networks.of(request.remote_addr)


def _forget(limit: str, key: str) -> None:
    """Reset the counts. Those that cannot be reset now expire on their own."""
    with suppress(BrokerDown), _breaker():
        for item in current_app.config[limit]:
            _limiter().clear(item, *_identifiers(limit, key))


def _identifiers(limit: str, key: str) -> tuple[str, str]:
    # Hashed: what people typed must not be in Redis, and may be long.
    return limit, hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _ask(limit: str, item: RateLimitItem, key: str, *, spends: bool) -> None:
    identifiers = _identifiers(limit, key)
    limiter = _limiter()
    try:
        with _breaker():
            is_within = (limiter.hit if spends else limiter.test)(item, *identifiers)
            resets_at = 0.0 if is_within else limiter.get_window_stats(item, *identifiers).reset_time
        if spends and is_within:
            huey.breaker.wrote()
    except BrokerDown as error:
        # Better too many signups for a while than none.
        if huey.breaker.is_news(limit):
            log.error("limit_not_checked", limit=limit, error=str(error))  # noqa: TRY400 - logged already by the breaker
        return
    if not is_within:
        log.warning("limit_reached", limit=limit)
        refusal = TooManyGuesses if limit.startswith("RATELIMIT_LOGIN_") else TooManyRequests
        raise refusal(retry_after=max(1, math.ceil(resets_at - time.time())))


def _limiter() -> MovingWindowRateLimiter:
    return cast("MovingWindowRateLimiter", current_app.extensions["limiter"])


def _breaker() -> AbstractContextManager[None]:
    """Return the breaker of the Redis that hints and limits share; limits in memory need none."""
    return huey.breaker if current_app.config["REDIS_URL"] else nullcontext()
