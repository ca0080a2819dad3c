"""Browsers in which an account was signed in before: strangers' wrong tries do not keep its owner out there."""

from __future__ import annotations

import secrets

from flask import Response, after_this_request, current_app, request

from webapp.accounts import authentication, tokens
from webapp.accounts.users import User

USE = "known browser"

YEAR = 365 * 86400

# Of as many accounts a browser is known, the last ones.
ACCOUNTS = 5
SEPARATOR = "."


def remember(user: User) -> None:
    """Let this browser be known as one of this account's, until its password is changed.

    The cookie holds a random name for the browser, sealed with the password's hash: it names nobody, proves nothing
    but that somebody signed in here, and nobody else can make one.
    """
    others = [pair for pair in _pairs() if not _is_of(pair, user)]
    name = secrets.token_hex(16)
    pairs = [(name, tokens.seal(USE, _said(name, user))), *others][:ACCOUNTS]

    @after_this_request
    def _keep(response: Response) -> Response:
        response.set_cookie(
            current_app.config["KNOWN_COOKIE_NAME"],
            SEPARATOR.join(part for pair in pairs for part in pair),
            max_age=YEAR,
            secure=current_app.config["SESSION_COOKIE_SECURE"],
            httponly=True,
            samesite="Lax",
        )
        return response


def named(identifier: str) -> str | None:
    """Return what this browser is known by to the account that is meant, if it is."""
    pairs = _pairs()
    if not pairs:
        return None
    user = authentication.find_account(identifier)
    # Compared in any case: how long it takes must not tell whether there is an account.
    are_of = [_is_of(pair, user) for pair in pairs]
    return next((f"browser:{name}" for (name, _seal), is_of in zip(pairs, are_of, strict=True) if is_of and user), None)


def _is_of(pair: tuple[str, str], user: User | None) -> bool:
    name, seal = pair
    return tokens.is_sealed(USE, _said(name, user), seal)


def _said(name: str, user: User | None) -> str:
    # A hash has a salt of its own, so it is one account's, and another after a change.
    return f"{name}:{user.password_hash if user else ''}"


def _pairs() -> list[tuple[str, str]]:
    """Return the browser's names and their seals, as they came: nobody looked at the seals yet."""
    parts = request.cookies.get(current_app.config["KNOWN_COOKIE_NAME"], "").split(SEPARATOR)[: 2 * ACCOUNTS]
    return list(zip(parts[::2], parts[1::2], strict=False))
