"""Signing a browser in and out: Flask-Login's part of it, and ours."""

from __future__ import annotations

from flask import Flask, session
from flask_login import current_user, login_user

from webapp import extensions, sessions
from webapp.users import User


def init_app(_app: Flask) -> None:
    extensions.login.login_view = "login.show"
    extensions.login.login_message = None
    extensions.login.user_loader(load)


def load(token: str) -> User | None:
    user = sessions.find_user(token)
    if user is not None:
        user.session_token = token
    return user


def sign_in(user: User) -> None:
    """Begin a new session: what this browser held before must not become the account's."""
    forget()
    user.session_token = sessions.begin(user)
    login_user(user)


def forget() -> None:
    """End the browser's session here and on the server, if it has one."""
    if current_user.is_authenticated:
        sessions.end(current_user.session_token)
    session.clear()
