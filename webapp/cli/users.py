"""`flask users`: accounts for operators, even while no email can be sent."""

from __future__ import annotations

import secrets
import sys
from typing import Any, NoReturn

import click
from flask import current_app
from flask.cli import with_appcontext

from webapp.accounts import passwords, roles, users
from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.second_factor import enrolment
from webapp.accounts.users import User
from webapp.cli.common import FOUND, Commands, act_as_operator, ask, json_option, yes_option
from webapp.cli.mail_actions import AddressType
from webapp.cli.output import picked, print_rows, wide_option
from webapp.delivery import tasks

EXIT_CODES = """\b
Exit codes:
  0  done
  1  there was nothing to find or to do, or you answered no
  2  the command was mistyped, or names a user that doesn't exist, already exists, or isn't the only match
  3  the database isn't responding
  4  a signal receiver failed, and nothing was changed
"""
IN_LISTS = ("id", "username", "email", "role", "second_factor_at", "email_verified_at", "created_at")


class UserType(click.ParamType[User]):
    """A verified user's name or address."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        user = roles.find(value)
        if user is None:
            self.fail(f"no verified user has the name or address {value!r}", param, ctx)
        return user


@click.group("users", cls=Commands, epilog=EXIT_CODES)
# Here too, since a command's arguments are looked up before it begins.
@with_appcontext
def user_commands() -> None:
    """Help people, create accounts for operators, and set who may do what under /ops."""
    act_as_operator()


@user_commands.command()
@click.argument("address", type=AddressType())
@click.option("--username", help="The part before the @ by default.")
@click.option("--admin", "role", flag_value="admin", help="May see and do everything under /ops.")
@click.option("--viewer", "role", flag_value="viewer", help="May see everything under /ops.")
@click.option("--generate", is_flag=True, help="Print a new password instead of asking for one.")
def create(*, address: Address, username: str | None, role: str | None, generate: bool) -> None:
    """Create a verified account without sending an email: you vouch for the address."""
    try:
        name = usernames.normalize(username or address.mailed.partition("@")[0].replace("+", "-"))
    except usernames.UsernameInvalid as error:
        rule = f"letters, digits, '.', '-' and '_', at most {usernames.LONGEST}, one of them a letter or digit"
        refuse(f"this can't be a username ({error.reason}): {rule}")
    password = secrets.token_urlsafe(15) if generate else ask_for_password([name, address.mailed])
    hashed = passwords.hash(password)
    try:
        user = roles.create(address, username=name, password_hash=hashed, role=role or "user")
    except roles.AccountExists:
        refuse("this address already has an account; to let it see /ops: flask users promote")
    except users.UsernameTaken:
        refuse(f"the username {name!r} is taken: choose another with --username")
    click.echo(f"created user {user.id}, {user.username}, with the role {user.role}", err=True)
    if generate:
        click.echo(password)


@user_commands.command()
@click.argument("user", metavar="NAME_OR_ADDRESS", type=UserType())
@click.option("--viewer", is_flag=True, help="Let them see everything, but do nothing.")
def promote(*, user: User, viewer: bool) -> None:
    """Let a user see and do everything under /ops."""
    give(user, "viewer" if viewer else "admin")


@user_commands.command()
@click.argument("user", metavar="NAME_OR_ADDRESS", type=UserType())
def demote(*, user: User) -> None:
    """Take away a user's role, from their next request on."""
    give(user, "user")


@user_commands.command("reset-second-factor")
@click.argument("user", metavar="NAME_OR_ADDRESS", type=UserType())
@yes_option
def reset_second_factor(*, user: User, yes: bool) -> None:
    """Turn off the second factor of someone who lost their phone and recovery codes, and end their sessions.

    First make sure it's really them. They get an email about it.
    """
    ask(f"turn off the second factor of user {user.id}, {user.username}, {user.email}?", yes=yes)
    notice = enrolment.reset(user)
    if notice is None:
        click.echo("nothing to reset: no second factor is on", err=True)
        sys.exit(FOUND)
    tasks.deliver_later(notice)
    click.echo("the second factor was turned off, and all sessions were ended")


@user_commands.command("list")
@click.option("--role", type=click.Choice(users.ROLES), help="Viewers and admins by default.")
@wide_option
@json_option
def list_(*, role: str | None, wide: bool, as_json: bool) -> None:
    """List the users who have a role."""
    print_rows([picked(user, IN_LISTS) for user in roles.holders(role)], as_json=as_json, wide=wide)


def ask_for_password(words: list[str]) -> str:
    """Ask until the password is good enough, and only then ask to repeat it."""
    while True:
        password: str = click.prompt("Password", hide_input=True, err=True)
        problem = _what_is_wrong(password, words)
        if problem:
            click.echo(problem, err=True)
        elif click.prompt("Repeat for confirmation", hide_input=True, err=True) == password:
            return password
        else:
            click.echo("the passwords don't match", err=True)


def _what_is_wrong(password: str, words: list[str]) -> str | None:
    minimum = current_app.config["PASSWORD_MIN_LENGTH"]
    if not minimum <= len(password) <= passwords.MAX_LENGTH:
        return f"the password must have from {minimum} to {passwords.MAX_LENGTH} characters"
    reasons = passwords.weakness(password, words)
    return f"the password is easy to guess: {' '.join(reasons)}" if reasons else None


def give(user: User, role: str) -> None:
    had = "already has" if user.role == role else "now has"
    roles.give(user, role)
    click.echo(f"user {user.id}, {user.username}, {had} the role {user.role}")


def refuse(reason: str) -> NoReturn:
    raise click.UsageError(reason)
