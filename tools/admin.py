"""`make admin`: creates an admin in the app that `make run` runs, and prints the name and password."""

from __future__ import annotations

import os
import secrets

import flask_migrate

from webapp import audit, create_app
from webapp.accounts import passwords, roles, users
from webapp.accounts.identifiers import email_addresses
from webapp.paths import ROOT


def main() -> None:
    os.environ["APP_ENV"] = "development"
    os.environ.setdefault("LOG_LEVEL", "warning")
    with create_app().app_context():
        # This may run before the first `make run`.
        flask_migrate.upgrade(str(ROOT / "migrations"))
        audit.actor.set("make admin")
        password = secrets.token_urlsafe(15)
        name = make(password, "admin") or make(password, f"admin-{secrets.token_hex(3)}")
    print(f"name:      {name}\npassword:  {password}\nSign in with them, then open /ops.")


def make(password: str, name: str) -> str | None:
    """Create the admin and return the name, or None if it is taken, say because the first password was forgotten."""
    address = email_addresses.parse_address(f"{name}@example.com")
    try:
        return roles.create(address, username=name, password_hash=passwords.hash(password), role="admin").username
    except (roles.AccountExists, users.UsernameTaken):
        return None


if __name__ == "__main__":
    main()
