"""`flask users`, the commands that help people: find them, see what happened, and act for them."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from webapp.accounts import sessions, users
from webapp.accounts.support import actions, search
from webapp.accounts.users import User
from webapp.cli.common import FOUND, ask, json_option, yes_option
from webapp.cli.mail import email_brief
from webapp.cli.output import picked, print_fields, print_json, print_rows, wide_option
from webapp.delivery import tasks
from webapp.monitoring import queries
from webapp.monitoring.queries import Filter

IN_LISTS = ("id", "username", "full_name", "email", "state", "created_at")
# On a terminal: what may be cut off comes last.
BRIEF = ("id", "username", "state", "created_at", "email", "full_name")
IN_FULL = (
    *("id", "username", "full_name", "email", "state", "role", "locale", "created_at", "email_verified_at"),
    *("locked_at", "purge_at", "second_factor_at"),
)
OF_MAILS = ("id", "status", "template", "to_address", "created_at", "last_smtp_code", "last_error")
OF_SESSIONS = ("browser", "system", "address", "created_at", "seen_at")
OF_EVENTS = ("at", "action", "actor", "address", "detail")
SHOWN = 20


class PersonType(click.ParamType[User]):
    """Anyone's number, username or address, verified or not."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        found = search.named(value)
        if not found:
            self.fail(f"nobody has the number, username or address {value!r}; to search: flask users find", param, ctx)
        if len(found) > 1:
            several = ", ".join(f"{user.id} ({user.username}, {user.email}, {users.state(user)})" for user in found[:5])
            self.fail(f"{value!r} matches {len(found)} people: {several}; type a number", param, ctx)
        return found[0]


person = click.argument("user", metavar="NUMBER_NAME_OR_ADDRESS", type=PersonType())


@click.command()
@click.argument("text")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@wide_option
@json_option
def find(*, text: str, limit: int, wide: bool, as_json: bool) -> None:
    """Find people by number, username, address, or part of a name; newest first."""
    found = search.page(ids=search.find(text), limit=limit + 1)
    brief = [_told(user, BRIEF) for user in found[:limit]]
    print_rows([_told(user, IN_LISTS) for user in found[:limit]], brief=brief, as_json=as_json, wide=wide)
    if len(found) > limit:
        click.echo("there are more: type more of the name, or raise --limit", err=True)
    sys.exit(0 if found else FOUND)


@click.command()
@person
@wide_option
@json_option
def show(*, user: User, wide: bool, as_json: bool) -> None:
    """Show a person's account, emails, sessions and events."""
    fields = _told(user, IN_FULL)
    emails = queries.mails(Filter(user_id=user.id), limit=SHOWN)
    parts = {
        "emails": [picked(one, OF_MAILS) for one in emails],
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
            print_rows(rows, brief=[email_brief(one) for one in emails] if name == "emails" else rows, wide=wide)


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
        _end("nothing to end: no session is open")
    click.echo(f"sessions ended: {ended}")


@click.command()
@person
@yes_option
def lock(*, user: User, yes: bool) -> None:
    """Lock an account: nobody can sign in, its sessions end, and its links stop working."""
    ask(f"lock user {user.id}, {user.username}, {user.email}?", yes=yes)
    if not actions.lock(user):
        _end("it's already locked")
    click.echo(f"locked; to undo: flask users unlock {user.id}")


@click.command()
@person
def unlock(*, user: User) -> None:
    """Unlock an account, so that its owner can sign in again. Its old links stay void."""
    if not actions.unlock(user):
        _end("it isn't locked")
    click.echo("unlocked")


@click.command()
@person
@yes_option
def delete(*, user: User, yes: bool) -> None:
    """Delete an account permanently, with all its data. If its address is verified, its owner gets an email."""
    ask(f"permanently delete user {user.id}, {user.username}, {user.email}?", yes=yes)
    email_id = actions.delete(user)
    if email_id is not None:
        tasks.deliver_later(email_id)
    click.echo(f"deleted user {user.id}")


@click.command()
@person
def export(*, user: User) -> None:
    """Print everything that we store about a person, as JSON."""
    print_json(actions.export(user))


def _told(user: User, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: users.state(user) if name == "state" else getattr(user, name) for name in names}


def _end(reason: str) -> NoReturn:
    click.echo(reason, err=True)
    sys.exit(FOUND)


COMMANDS = (find, show, resend, end_sessions, lock, unlock, delete, export)
