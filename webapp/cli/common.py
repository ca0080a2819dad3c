"""Shared by the commands: exit codes, emails by id, and who acts."""

from __future__ import annotations

import getpass
import os
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolExhausted

from webapp import audit, signals
from webapp.db import outages
from webapp.db.base import db
from webapp.monitoring import queries
from webapp.outbox.outgoing_email import OutgoingEmail

FOUND, NO_DATABASE, UNDONE = 1, 3, 4
EXIT_CODES = """\b
Exit codes:
  0  done, and nothing is wrong
  1  doctor found something, relay couldn't send everything, there was nothing to retry,
     cancel, pause or resume, the test email wasn't accepted, or you answered no
  2  the command was mistyped, or names an email or a user that doesn't exist
  3  the database isn't responding (a test email may still have been accepted)
  4  prune: a signal receiver failed, and what it was told about wasn't deleted
"""


class Commands(AppGroup):
    """Commands that end with one line instead of a traceback if the database is away or a signal receiver fails."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with outages.untold():
                return super().invoke(ctx)
        except (OperationalError, PoolExhausted) as error:
            original = getattr(error, "orig", None) or error
            migrate = outages.of(current_app).migrate
            advice = f"; to create the tables: {migrate}" if outages.is_unmigrated(original) else ""
            click.echo(f"the database isn't responding: {outages.reason(original)}{advice}", err=True)
            ctx.exit(NO_DATABASE)
        except signals.ReceiverFailed as error:
            click.echo(f"nothing was changed: {error}", err=True)
            ctx.exit(UNDONE)


class Mail(click.ParamType[OutgoingEmail]):
    """An email's id, or the beginning of it if no other id begins so."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> OutgoingEmail:
        try:
            like = queries.mails_like(value, limit=2)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not like:
            self.fail(f"no email ID starts with {value!r}", param, ctx)
        if len(like) > 1:
            self.fail(f"several email IDs start with {value!r}: type more of it", param, ctx)
        return like[0]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Don't ask.")


def act_as_operator() -> None:
    """Name the operator in the audit until the command ends."""
    former = audit.actor.set(_operator()[: audit.ACTOR_MAX])
    click.get_current_context().call_on_close(lambda: audit.actor.reset(former))


def _operator() -> str:
    """Return the operator's name: OPERATOR, for shared logins and for containers without logins, or the login name."""
    if name := os.environ.get("OPERATOR", "").strip():
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def ask(question: str, *, yes: bool) -> None:
    """End the command unless the operator agrees."""
    # The answer may take hours, and must not keep SQLite's writers waiting.
    db.session.rollback()
    if not yes:
        click.confirm(question, abort=True, err=True)
