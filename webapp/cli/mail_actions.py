"""`flask mail`, the commands that act: retry, cancel, pause, resume, test, prune, relay."""

from __future__ import annotations

import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from webapp import audit, operations, retention
from webapp.accounts.identifiers import email_addresses
from webapp.accounts.identifiers.email_addresses import Address
from webapp.cli.common import FOUND, Mail, ask, yes_option
from webapp.cli.output import print_fields, progress
from webapp.db.base import db
from webapp.delivery import circuit_breaker, heartbeats, reach, relay, tasks, trial, worker
from webapp.extensions import mail
from webapp.monitoring import queries
from webapp.monitoring.formatting import emails_are
from webapp.operations import Retried
from webapp.outbox import pause, reaper
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp.client import Reply
from webapp.smtp.protocol import SmtpError

PAUSED = "all email is paused; to resume: flask mail resume"


class AddressType(click.ParamType[Address]):
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        try:
            return email_addresses.parse_address(value)
        except email_addresses.AddressInvalid as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.argument("emails", metavar="[ID]...", nargs=-1, type=Mail())
@click.option("--dead", is_flag=True, help="All dead emails.")
@click.option("--code", type=int, help="All queued or dead emails with this answer, such as 550.")
def retry(*, emails: Sequence[OutgoingEmail], dead: bool, code: int | None) -> None:
    """Retry emails: revive dead ones, and send queued ones now.

    A revived email gets all its attempts back, and keeps its Message-ID.
    """
    chosen = chosen_emails(emails, dead=dead, code=code)
    retried = Retried()
    with progress("retrying", len(chosen)) as advance:
        for chunk in operations.chunks(chosen):
            retried += operations.retry(chunk)
            advance(len(chunk))
    if not retried.revived + retried.hurried:
        click.echo("nothing to retry: no queued email matches, and no dead one that can be revived", err=True)
        sys.exit(FOUND)
    # Hints must not flood the queue; the relay hints the others.
    for email_id in chosen[: relay.BATCH]:
        tasks.deliver_later(email_id)
    click.echo(f"revived {retried.revived}, made due {retried.hurried}")
    say_what_holds_email_up()


@click.command()
@click.argument("emails", metavar="[ID]...", nargs=-1, type=Mail())
@click.option("--dead", is_flag=True, help="All dead emails.")
@click.option("--code", type=int, help="All queued or dead emails with this answer, such as 550.")
@yes_option
def cancel(*, emails: Sequence[OutgoingEmail], dead: bool, code: int | None, yes: bool) -> None:
    """Cancel queued and dead emails. Emails being sent are not stopped.

    People who wait for one are told that it didn't arrive, and can ask for another.
    """
    chosen = chosen_emails(emails, dead=dead, code=code)
    ask(f"{len(chosen)} found; cancel those that are queued or dead?", yes=yes)
    canceled = 0
    with progress("canceling", len(chosen)) as advance:
        for chunk in operations.chunks(chosen):
            canceled += operations.cancel(chunk)
            advance(len(chunk))
    if not canceled:
        click.echo("nothing to cancel: no queued or dead email matches", err=True)
        sys.exit(FOUND)
    click.echo(f"canceled {canceled}")


@click.command("pause")
@click.argument("reason")
def pause_(*, reason: str) -> None:
    """Pause all email, on every machine, until `resume`. Emails being sent are not stopped."""
    if not operations.pause_mail(reason[: pause.REASON_MAX]):
        click.echo("already paused: flask mail stats", err=True)
        sys.exit(FOUND)
    click.echo(PAUSED)


@click.command()
def resume() -> None:
    """Resume all email, starting with what is due."""
    if not operations.resume_mail():
        click.echo("email wasn't paused", err=True)
        sys.exit(FOUND)
    click.echo(f"resumed; {emails_are(queries.due())} due")


@click.command()
@click.argument("address", type=AddressType())
@click.option("--timeout", type=click.IntRange(1, 600), help="Seconds to wait; MAIL_TIMEOUT by default.")
def test(*, address: Address, timeout: int | None) -> None:
    """Send a test email from here, at once, and print what the mail server says at each step.

    Works even while email is paused or the mail server is down. Once it's accepted, emails that wait for the mail
    server are sent.
    """
    tell_step("server", f"{mail.server}:{mail.port}")
    try:
        message_id = trial.send(address, timeout or mail.timeout, tell_step)
    except SmtpError as error:
        tell_step(error.phase, f"{error.code or ''} {error.reply}".strip())
        click.echo(f"not accepted: it failed at this step: {error.phase}", err=True)
        # The answer was printed; the audit is optional, since the database may be away.
        with suppress(SQLAlchemyError):
            trial.note(f"not accepted: {error.phase}", accepted=False)
        sys.exit(FOUND)
    click.echo(f"accepted as {message_id}", err=True)
    if trial.note(message_id, accepted=True):
        click.echo("the mail server works again; emails that waited for it are sent now", err=True)
    say_what_holds_email_up()


def tell_step(phase: str, reply: Reply | str) -> None:
    said = reply if isinstance(reply, str) else f"{reply.code} {reply.text}"
    # An answer of several lines, as to EHLO, stays together.
    click.echo(f"{phase:<10}{said}".replace("\n", f"\n{'':<10}"))


@click.command()
@yes_option
def prune(*, yes: bool) -> None:
    """Forget signups that nobody verified in time, and emails, audit events and sessions older than RETENTION_DAYS.

    Every worker does this once an hour.
    """
    old = retention.to_forget()
    print_fields(old)
    if not any(old.values()):
        return
    ask("forget these?", yes=yes)
    pruned = dict.fromkeys(old, 0)
    with progress("forgetting", sum(old.values())) as advance:
        for name, count in retention.prune():
            pruned[name] += count
            advance(count)
    audit.record("pruned", detail=", ".join(f"{name} {count}" for name, count in pruned.items() if count))
    db.session.commit()
    click.echo(f"forgot {sum(pruned.values())}")


@click.command("relay")
@click.option("--once", is_flag=True, help="Run once; in every worker it runs all the time.")
def run_relay(*, once: bool) -> None:
    """Take emails back from dead workers and send what is due, from here, without a worker or the queue."""
    if not once:
        raise click.UsageError("the relay runs in every worker; to run it once from here, add --once")
    before = queries.last_attempt()
    reaped = reaper.reap()
    db.session.commit()
    with stopping_softly():
        send_due()
    outcomes = queries.outcomes(heartbeats.worker_name(), after=before)
    left = queries.due()
    done = [f"took back {reaped}"] if reaped else []
    done += [f"{outcome} {count}" for outcome, count in outcomes.items()]
    click.echo(", ".join(done) or "nothing was sent")
    if left:
        click.echo(f"{left} still due", err=True)
    if say_what_holds_email_up() or left or set(outcomes) - {"sent", "canceled"}:
        sys.exit(FOUND)


COMMANDS = (retry, cancel, pause_, resume, test, prune, run_relay)


def chosen_emails(emails: Sequence[OutgoingEmail], *, dead: bool, code: int | None) -> Sequence[uuid.UUID]:
    if [bool(emails), dead, code is not None].count(True) != 1:
        raise click.UsageError("say which emails: by ID, by --dead or by --code")
    if emails:
        return [email.id for email in emails]
    return queries.ids(queries.Filter(status="dead" if dead else None, code=code))


def say_what_holds_email_up() -> bool:
    """Say why due emails are waiting, and return whether they are."""
    is_open, is_paused, is_resting = circuit_breaker.is_open(), pause.is_paused(), reach.is_resting()
    if is_open:
        click.echo("the mail server is down; emails are queued until it works", err=True)
    if is_paused:
        click.echo(PAUSED, err=True)
    if is_resting:
        click.echo("the mail server can't be reached from here, only from elsewhere; try: flask mail test", err=True)
    return is_open or is_paused or is_resting


def send_due() -> None:
    if circuit_breaker.is_open():
        worker.probe()
        return
    # What becomes due in the meantime is for the next run.
    for _ in range(queries.due()):
        if mail.stopping or not worker.deliver_due(1):
            break


@contextmanager
def stopping_softly() -> Iterator[None]:
    """On Ctrl-C and SIGTERM, finish the email being sent as a worker does, so that none is left leased."""

    def stop(*_: Any) -> None:
        mail.stop()

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        mail.close()
