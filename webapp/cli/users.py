"""`flask users`: accounts for operators, also while no email is sent."""

from __future__ import annotations

import secrets
from typing import Any, NoReturn

import click
from flask import current_app
from flask.cli import with_appcontext

from webapp.accounts import passwords, roles, users
from webapp.accounts.identifiers import usernames
from webapp.accounts.identifiers.email_addresses import Address
from webapp.accounts.users import User
from webapp.cli.common import Commands, act_as_operator, json_option
from webapp.cli.mail_actions import AddressType
from webapp.cli.output import picked, print_rows

EXIT_CODES = """\b
Exit codes:
  0  done
  1  there was nothing to find or to do, or a question was answered with no
  2  the command was mistyped, or names a user that is not there, is there already, or is one of several
  3  the database isn't responding
  4  a receiver of a signal failed, and nothing was changed
"""
IN_LISTS = ("id", "username", "email", "role", "email_verified_at", "created_at")


class UserType(click.ParamType[User]):
    """A verified user's name or address."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> User:
        user = roles.find(value)
        if user is None:
            self.fail(f"no verified user has the name or the address {value!r}", param, ctx)
        return user


@click.group("users", cls=Commands, epilog=EXIT_CODES)
# Here too, since the arguments of a command are looked up before it begins.
@with_appcontext
def user_commands() -> None:
    """Help people, make accounts for operators, and say who may do what under /ops."""
    act_as_operator()


@user_commands.command()
@click.argument("address", type=AddressType())
@click.option("--username", help="Without it: what stands before the @.")
@click.option("--admin", "role", flag_value="admin", help="May see and do everything under /ops.")
@click.option("--viewer", "role", flag_value="viewer", help="May see everything under /ops.")
@click.option("--generate", is_flag=True, help="Print a new password instead of asking for one.")
def create(*, address: Address, username: str | None, role: str | None, generate: bool) -> None:
    """Make a verified account without an email: you vouch for the address."""
    try:
        name = usernames.normalize(username or address.mailed.partition("@")[0].replace("+", "-"))
    except usernames.UsernameInvalid as error:
        rule = f"letters, digits, '.', '-' and '_', at most {usernames.LONGEST} of them, not only signs"
        refuse(f"this is no username ({error.reason}): {rule}")
    if generate:
        password = secrets.token_urlsafe(15)
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        check_password(password, [name, address.mailed])
    hashed = passwords.hash(password)
    try:
        user = roles.create(address, username=name, password_hash=hashed, role=role or "user")
    except roles.AccountExists:
        refuse("this address has an account already; to let it see /ops: flask users promote")
    except users.UsernameTaken:
        refuse(f"somebody else has the username {name!r}: choose another with --username")
    click.echo(f"made user {user.id}, {user.username}, with the role {user.role}", err=True)
    if generate:
        click.echo(password)


@user_commands.command()
@click.argument("user", metavar="NAME_OR_ADDRESS", type=UserType())
@click.option("--viewer", is_flag=True, help="Only to see, not to act.")
def promote(*, user: User, viewer: bool) -> None:
    """Let a user see and do everything under /ops."""
    roles.give(user, "viewer" if viewer else "admin")
    click.echo(f"user {user.id}, {user.username}, now has the role {user.role}")


@user_commands.command()
@click.argument("user", metavar="NAME_OR_ADDRESS", type=UserType())
def demote(*, user: User) -> None:
    """Take a user's role away, from its next request on."""
    roles.give(user, "user")
    click.echo(f"user {user.id}, {user.username}, now has the role {user.role}")


@user_commands.command("list")
@click.option("--role", type=click.Choice(users.ROLES), help="Without it: viewers and admins.")
@json_option
def list_(*, role: str | None, as_json: bool) -> None:
    """List who has a role."""
    print_rows([picked(user, IN_LISTS) for user in roles.holders(role)], as_json=as_json)


def check_password(password: str, words: list[str]) -> None:
    minimum = current_app.config["PASSWORD_MIN_LENGTH"]
    if not minimum <= len(password) <= passwords.MAX_LENGTH:
        refuse(f"the password must have from {minimum} to {passwords.MAX_LENGTH} characters")
    if reason := passwords.weakness(password, words):
        refuse(f"the password is easy to guess: {reason}")


def refuse(reason: str) -> NoReturn:
    raise click.UsageError(reason)
