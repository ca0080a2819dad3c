"""`flask users`, what helps people: find them, see what became of them, and act for them."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from webapp.accounts import sessions, users
from webapp.accounts.support import actions, search
from webapp.accounts.users import User
from webapp.cli.common import FOUND, ask, json_option, yes_option
from webapp.cli.output import picked, print_fields, print_json, print_rows
from webapp.delivery import tasks
from webapp.monitoring import queries
from webapp.monitoring.queries import Filter

IN_LISTS = ("id", "username", "full_name", "email", "state", "created_at")
IN_FULL = (
    *("id", "username", "full_name", "email", "state", "role", "locale", "created_at", "email_verified_at"),
    *("locked_at", "purge_at"),
)
OF_MAILS = ("id", "status", "template", "to_address", "created_at", "last_smtp_code", "last_error")
OF_SESSIONS = ("browser", "system", "address", "created_at", "seen_at")
OF_EVENTS = ("at", "action", "actor", "address", "detail")
SHOWN = 20


class PersonType(click.ParamType[User]):
    """Anybody's number, username or address, verified or not."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        found = search.named(value)
        if not found:
            self.fail(f"nobody has the number, the username or the address {value!r}: flask users find", param, ctx)
        if len(found) > 1:
            several = ", ".join(f"{user.id} ({user.username}, {user.email}, {users.state(user)})" for user in found[:5])
            self.fail(f"{value!r} means {len(found)} people: {several}; type a number", param, ctx)
        return found[0]


person = click.argument("user", metavar="NUMBER_NAME_OR_ADDRESS", type=PersonType())


@click.command()
@click.argument("text")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
def find(*, text: str, limit: int, as_json: bool) -> None:
    """Find people by number, username, address, or part of a name; the newest first."""
    found = search.page(ids=search.find(text), limit=limit + 1)
    print_rows([_told(user, IN_LISTS) for user in found[:limit]], as_json=as_json)
    if len(found) > limit:
        click.echo("there are more: type more of the name, or raise --limit", err=True)
    sys.exit(0 if found else FOUND)


@click.command()
@person
@json_option
def show(*, user: User, as_json: bool) -> None:
    """Show a person's account, emails, sessions, and what happened."""
    fields = _told(user, IN_FULL)
    parts = {
        "emails": [picked(one, OF_MAILS) for one in queries.mails(Filter(user_id=user.id), limit=SHOWN)],
        "sessions": [picked(one, OF_SESSIONS) for one in sessions.of(user)],
        "events": [picked(one, OF_EVENTS) for one in actions.events(user, limit=SHOWN)],
    }
    if as_json:
        print_json({**fields, **parts})
        return
    print_fields(fields)
    for name, rows in parts.items():
        if rows:
            click.echo(f"\n{name}")
            print_rows(rows)


@click.command()
@person
def resend(*, user: User) -> None:
    """Send a pending person's verification email again, now."""
    try:
        email_id = actions.resend(user)
    except actions.NotPending:
        _end(f"nothing to resend: the account is {users.state(user)}")
    if email_id is None:
        _end(f"an email is already on its way: flask mail list --user {user.id}")
    tasks.deliver_later(email_id)
    click.echo(f"sending it again to {user.email}: flask mail show {email_id}")


@click.command("end-sessions")
@person
def end_sessions(*, user: User) -> None:
    """Sign a person out in every browser."""
    ended = actions.end_sessions(user)
    if not ended:
        _end("nothing to end: there is no session")
    click.echo(f"ended {ended} sessions")


@click.command()
@person
@yes_option
def lock(*, user: User, yes: bool) -> None:
    """Let nobody sign in to an account; its sessions end, its links are void."""
    ask(f"lock user {user.id}, {user.username}, {user.email}?", yes=yes)
    if not actions.lock(user):
        _end("it is locked already")
    click.echo(f"locked; this undoes it: flask users unlock {user.id}")


@click.command()
@person
def unlock(*, user: User) -> None:
    """Let the owner of an account sign in again. Links that were void stay so."""
    if not actions.unlock(user):
        _end("it is not locked")
    click.echo("unlocked")


@click.command()
@person
@yes_option
def delete(*, user: User, yes: bool) -> None:
    """Delete an account for good, with all its data; a verified address is told."""
    ask(f"delete user {user.id}, {user.username}, {user.email}, for good?", yes=yes)
    email_id = actions.delete(user)
    if email_id is not None:
        tasks.deliver_later(email_id)
    click.echo(f"deleted user {user.id}")


@click.command()
@person
def export(*, user: User) -> None:
    """Print all that is kept of a person, as JSON."""
    print_json(actions.export(user))


def _told(user: User, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: users.state(user) if name == "state" else getattr(user, name) for name in names}


def _end(reason: str) -> NoReturn:
    click.echo(reason, err=True)
    sys.exit(FOUND)


COMMANDS = (find, show, resend, end_sessions, lock, unlock, delete, export)
