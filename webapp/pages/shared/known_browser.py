"""Browsers in which an account was signed in before: there, strangers' wrong tries do not lock its owner out."""

from __future__ import annotations

import secrets

from flask import Response, after_this_request, current_app, request

from webapp.accounts import authentication, tokens
from webapp.accounts.users import User

USE = "known browser"

YEAR = 365 * 86400

# A browser stays known to this many accounts, the most recent ones.
ACCOUNTS = 5
SEPARATOR = "."


def remember(user: User) -> None:
    """Make this browser known to the account, until its password or second factor changes.

    The cookie holds a random name for the browser, sealed with the password's hash: it identifies nobody, proves only
    that somebody signed in here, and cannot be forged.
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
    """Return this browser's name with the account that is meant, if it is known there."""
    return name_for(authentication.find_account(identifier)) if _pairs() else None


def name_for(user: User | None) -> str | None:
    """Return this browser's name with this account, if it is known there."""
    pairs = _pairs()
    # Always compared: timing must not reveal whether there is an account.
    are_of = [_is_of(pair, user) for pair in pairs]
    return next((f"browser:{name}" for (name, _seal), is_of in zip(pairs, are_of, strict=True) if is_of and user), None)


def _is_of(pair: tuple[str, str], user: User | None) -> bool:
    name, seal = pair
    return tokens.is_sealed(USE, _said(name, user), seal)


def _said(name: str, user: User | None) -> str:
    # Each hash has its own salt, so it differs between accounts, and after a change.
    said = f"{name}:{user.password_hash if user else ''}"
    # Somebody who signed in before it was on did not prove it.
    return f"{said}:{user.second_factor_at}" if user and user.second_factor_at else said


def _pairs() -> list[tuple[str, str]]:
    """Return the browser's names and seals as they were sent: the seals are not checked yet."""
    parts = request.cookies.get(current_app.config["KNOWN_COOKIE_NAME"], "").split(SEPARATOR)[: 2 * ACCOUNTS]
    return list(zip(parts[::2], parts[1::2], strict=False))
