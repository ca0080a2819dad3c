"""`make admin`: an account for trying out /ops."""

from __future__ import annotations

from flask import Flask

from tools import admin
from webapp.accounts import roles


def test_who_forgot_the_password_of_the_first_admin_gets_another(app: Flask) -> None:
    with app.app_context():
        made = [admin.make("4711 4712 4713", name) for name in ("admin", "admin", "admin-2")]
        assert made == ["admin", None, "admin-2"]
        assert [user.username for user in roles.holders("admin")] == ["admin", "admin-2"]
