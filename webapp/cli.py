"""Commands for the operator: what became of the mails, and what to do about it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import click
from flask import Flask
from flask.cli import AppGroup, with_appcontext
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolExhausted

from webapp import backlog, breaker, delivery, figures, tasks
from webapp.extensions import db, mail
from webapp.outbox import OutgoingEmail
from webapp.printing import duration, picked, print_fields, print_json, print_rows

FOUND, NO_DATABASE = 1, 3
EXIT_CODES = """\b
Exit codes:
  0  done, and nothing is wrong
  1  doctor found something, retry found nothing, relay could not send all
  2  the command was mistyped, or names a mail that is not there
  3  the database does not answer
"""

# One statement takes only so many parameters.
CHUNK = 1000

# Never a token, a link, a code or a body: none of them is in the tables, and a lease's token is nobody's business.
IN_LISTS = ("id", "status", "template", "to_address", "attempts", "next_attempt_at", "last_smtp_code", "last_error")
IN_FULL = (
    *("id", "message_id", "status", "template", "locale", "to_address", "user_id", "priority", "attempts"),
    *("max_attempts", "lease_expiries", "in_doubt", "locked_by", "lease_until", "last_error_class", "last_smtp_code"),
    *("last_error", "created_at", "next_attempt_at", "expires_at", "sent_at", "finished_at"),
)
OF_ATTEMPTS = ("started_at", "finished_at", "outcome", "phase", "code", "reply", "worker")


class Commands(AppGroup):
    """Commands that end in one line, not in a traceback, when the database is away."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OperationalError, ProgrammingError, PoolExhausted) as error:
            reason = str(getattr(error, "orig", error)).strip().partition("\n")[0]
            advice = "; are its tables there? flask db upgrade" if is_about_tables(error) else ""
            click.echo(f"the database does not answer: {reason}{advice}", err=True)
            ctx.exit(NO_DATABASE)


def is_about_tables(error: Exception) -> bool:
    return isinstance(error, ProgrammingError) or "no such" in str(error)


class Mail(click.ParamType[OutgoingEmail]):
    """A mail's id, or as much of its beginning as no other has."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> OutgoingEmail:
        try:
            like = figures.mails_like(value, limit=2)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not like:
            self.fail(f"no mail has an id that begins with {value!r}", param, ctx)
        if len(like) > 1:
            self.fail(f"several mails have an id that begins with {value!r}: type more of it", param, ctx)
        return like[0]


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def init_app(app: Flask) -> None:
    app.cli.add_command(mail_commands)


@click.group("mail", cls=Commands, epilog=EXIT_CODES)
# Here too, since the arguments of a command are looked up before it begins.
@with_appcontext
def mail_commands() -> None:
    """See what became of each promised mail, and mend what went wrong."""


@mail_commands.command()
@json_option
def stats(*, as_json: bool) -> None:
    """Count the mails by status, and say how fast they leave."""
    now = figures.stats()
    if as_json:
        print_json(asdict(now))
        return
    is_open = now.breaker_seconds is not None
    print_fields(
        {
            **now.by_status,
            "due": now.due,
            "oldest due": duration(now.oldest_due_seconds),
            "sent in the last hour": now.sent_last_hour,
            "mail server": f"down for {duration(now.breaker_seconds)}: {now.breaker_reason}" if is_open else "up",
            "limit in all": f"reached: {now.limit_reached}" if now.limit_reached else "not reached",
            "workers alive": now.workers,
        }
    )


@mail_commands.command("list")
@click.option("--status", type=click.Choice(figures.STATUSES))
@click.option("--template", help="Such as verify_email.")
@click.option("--address", help="The recipient's, in full.")
@click.option("--code", type=int, help="The mail server's last answer, such as 550.")
@click.option("--user", "user_id", type=int, help="The user's number.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--before", type=Mail(), help="Go on after this mail.")
@json_option
def list_(*, limit: int, before: OutgoingEmail | None, as_json: bool, **wanted: Any) -> None:
    """List mails, the newest first."""
    found = figures.mails(figures.Filter(**wanted), limit=limit + 1, before=before.id if before else None)
    rows = [picked(email, IN_LISTS) for email in found[:limit]]
    print_rows(rows, as_json=as_json)
    if len(found) > limit:
        click.echo(f"more: --before {rows[-1]['id']}", err=True)


@mail_commands.command()
@click.argument("email", metavar="ID", type=Mail())
@json_option
def show(*, email: OutgoingEmail, as_json: bool) -> None:
    """Show one mail and each try at it. The beginning of its ID is enough."""
    fields = picked(email, IN_FULL)
    tries = [picked(attempt, OF_ATTEMPTS) for attempt in figures.attempts_at(email.id)]
    if as_json:
        print_json({**fields, "delivery_attempts": tries})
        return
    print_fields(fields)
    if tries:
        click.echo()
        print_rows(tries)


@mail_commands.command()
@click.argument("emails", metavar="[ID]...", nargs=-1, type=Mail())
@click.option("--dead", is_flag=True, help="All dead mails.")
@click.option("--code", type=int, help="All that wait or are dead after this answer, such as 550.")
def retry(*, emails: Sequence[OutgoingEmail], dead: bool, code: int | None) -> None:
    """Send mails again: revive dead ones, and let waiting ones go at once.

    A revived mail has all its attempts again, and the same Message-ID.
    """
    if [bool(emails), dead, code is not None].count(True) != 1:
        raise click.UsageError("say which mails: by ID, by --dead or by --code")
    chosen = (
        [email.id for email in emails]
        if emails
        else figures.ids(figures.Filter(status="dead" if dead else None, code=code))
    )
    hurried = revived = 0
    for start in range(0, len(chosen), CHUNK):
        hurried += backlog.hurry(chosen[start : start + CHUNK])
        revived += backlog.revive(chosen[start : start + CHUNK])
    db.session.commit()
    if not hurried + revived:
        click.echo(f"nothing to retry: of {len(chosen)} mails none waits or can be revived", err=True)
        sys.exit(FOUND)
    # Hints must not flood the queue; the relay gives those of the others.
    for email_id in chosen[: tasks.BATCH]:
        tasks.deliver_later(email_id)
    click.echo(f"revived {revived}, made due {hurried}")
    if breaker.is_open():
        click.echo("the mail server is down: they wait for it", err=True)


@mail_commands.command()
@json_option
def workers(*, as_json: bool) -> None:
    """List the workers, and whether they are alive."""
    found = [asdict(worker) for worker in figures.workers()]
    print_rows(found, as_json=as_json)
    if not any(worker["is_alive"] for worker in found):
        click.echo(f"no worker is alive; this starts one: {figures.START_WORKER}", err=True)


@mail_commands.command()
@click.option("--once", is_flag=True, help="One turn; without end it runs in every worker.")
def relay(*, once: bool) -> None:
    """Take mails back from dead workers and send what is due, from here: without worker and queue."""
    if not once:
        raise click.UsageError("the relay runs in every worker; here it does one turn: --once")
    before = figures.last_attempt()
    reaped = backlog.reap()
    db.session.commit()
    with stopping_softly():
        send_due()
    outcomes = figures.outcomes(delivery.worker_name(), after=before)
    left = figures.due()
    is_open = breaker.is_open()
    click.echo(", ".join([f"took back {reaped}", *(f"{outcome} {count}" for outcome, count in outcomes.items())]))
    if left:
        click.echo(f"{left} still due", err=True)
    if is_open:
        click.echo("the mail server is down: mails wait for it", err=True)
    if left or is_open or set(outcomes) - {"sent", "canceled"}:
        sys.exit(FOUND)


@mail_commands.command()
@json_option
def doctor(*, as_json: bool) -> None:
    """Check that every promise is kept; each finding ends with the command to type."""
    findings, notes = figures.findings(), figures.notes()
    if as_json:
        print_json(
            {
                "is_well": not findings,
                "findings": [asdict(finding) for finding in findings],
                "notes": [asdict(note) for note in notes],
            }
        )
    else:
        for finding in findings:
            click.echo(f"{finding.text}: {finding.command}")
        if not findings:
            click.echo("all is well")
        for note in notes:
            click.echo(f"note: {note.text}: {note.command}")
    sys.exit(FOUND if findings else 0)


def send_due() -> None:
    if breaker.is_open():
        delivery.probe()
        return
    # What becomes due meanwhile is for the next turn.
    for _ in range(figures.due()):
        if mail.stopping or not delivery.deliver_due(1):
            break


@contextmanager
def stopping_softly() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the mail in hand as they do in a worker, so that none is left leased."""

    def stop(*_: Any) -> None:
        # In a thread of its own, since it waits for a lock that the interrupted code may hold.
        threading.Thread(target=mail.stop).start()

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        mail.close()
