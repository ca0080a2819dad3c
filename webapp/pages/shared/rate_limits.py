"""How often one may ask: counted where all web servers see it, by what was asked, and never by whether it exists."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import structlog
from flask import current_app, request
from limits import RateLimitItem
from limits.strategies import RateLimiter
from werkzeug.exceptions import TooManyRequests

from webapp.extensions import huey, limiter
from webapp.pages.shared import networks
from webapp.pages.shared.networks import Network
from webapp.queue.broker_breaker import BrokerDown

log = structlog.get_logger(__name__)


def spend(limit: str, key: str | Network) -> None:
    """Count one request. Raises TooManyRequests, when there were too many already.

    `limit`: the setting's name; `key`: whose requests are counted together.
    """
    for item, name in _counted(limit, key):
        _ask(limit, item, name, spends=True)


def spent(limit: str, network: Network) -> int:
    """Return how many requests of a network itself were counted within the shortest of the limit's times.

    1 where nobody knows.
    """
    name, share = network.counted[0]
    item = min(current_app.config[limit], key=RateLimitItem.get_expiry, default=None)
    if item is None:
        return 1
    own = type(item)(item.amount * share, item.multiples)
    try:
        with _breaker():
            stats = limiter.limiter.get_window_stats(own, *_identifiers(limit, name))
    except BrokerDown:
        return 1
    return int(own.amount - stats.remaining)


def check(limit: str, key: str | Network) -> None:
    """Count nothing. Raises TooManyRequests, when there were too many."""
    for item, name in _counted(limit, key):
        _ask(limit, item, name, spends=False)


def _counted(limit: str, key: str | Network) -> Iterator[tuple[RateLimitItem, str]]:
    """Yield what the request counts for: a network's own limit before those of the wider ones around it.

    So whoever is over the own one uses nothing up that others share.
    """
    for name, share in key.counted if isinstance(key, Network) else ((key, 1),):
        for item in current_app.config[limit]:
            yield type(item)(item.amount * share, item.multiples), name


@contextmanager
def guessing(account: str, *, known_by: str | None = None) -> Iterator[Guess]:
    """Limit the guesses at a password: of one account from everywhere, and of all from one network.

    `account`: what was typed to name it. `known_by`: the session, the link or the browser by which we know who asks.
    Those guess on counts of their own, so that nobody else's wrong tries keep an owner out, not even from one network.
    Raises TooManyGuesses.
    """
    if known_by is None:
        check("RATELIMIT_LOGIN_IP", network())
    limit, key = ("RATELIMIT_LOGIN_ACCOUNT", account) if known_by is None else ("RATELIMIT_LOGIN_KNOWN", known_by)
    # Counted beforehand: of many guesses at once, all would find that they may be checked.
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
    """`ends_count`: whether a right one lets the guesses be counted anew."""

    is_right: bool = False
    ends_count: bool = True


class TooManyGuesses(TooManyRequests):
    """At a password: whoever forgot it need not wait."""


def forgive(*accounts: str) -> None:
    """Begin to count the guesses at these anew: by another way their owner showed who it is."""
    for account in accounts:
        _forget("RATELIMIT_LOGIN_ACCOUNT", account)


def network() -> Network:
    """Return whose request this is."""
    return networks.of(request.remote_addr)


def _forget(limit: str, key: str) -> None:
    """Begin to count anew. What cannot be forgotten now is so when its time is over."""
    with suppress(BrokerDown), _breaker():
        for item in current_app.config[limit]:
            limiter.limiter.clear(item, *_identifiers(limit, key))


def _identifiers(limit: str, key: str) -> tuple[str, str]:
    # What people typed is not for Redis to know, and may be long.
    return limit, hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _ask(limit: str, item: RateLimitItem, key: str, *, spends: bool) -> None:
    identifiers = _identifiers(limit, key)
    strategy: RateLimiter = limiter.limiter
    try:
        with _breaker():
            is_within = (strategy.hit if spends else strategy.test)(item, *identifiers)
            resets_at = 0.0 if is_within else strategy.get_window_stats(item, *identifiers).reset_time
    except BrokerDown as error:
        # Better too many signups for a while than none.
        log.error("limit_not_checked", limit=limit, error=str(error))  # noqa: TRY400 - the broker told already
        return
    if not is_within:
        log.warning("limit_reached", limit=limit)
        refusal = TooManyGuesses if limit.startswith("RATELIMIT_LOGIN_") else TooManyRequests
        raise refusal(retry_after=max(1, math.ceil(resets_at - time.time())))


def _breaker() -> AbstractContextManager[None]:
    """Return the breaker of the Redis that hints and limits share; memory needs none."""
    return huey.breaker if current_app.config["REDIS_URL"] else nullcontext()
