"""`flask mail`, the commands that show: what became of each promised email, and what is wrong."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click
from flask.cli import with_appcontext

from webapp.cli.common import EXIT_CODES, FOUND, Commands, Mail, act_as_operator, json_option
from webapp.cli.output import picked, print_fields, print_json, print_rows, wide_option
from webapp.delivery import heartbeats
from webapp.monitoring import doctor, queries, remedies
from webapp.monitoring.formatting import duration, plain
from webapp.outbox.attempts import DeliveryAttempt
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.version import version

# Never a token, link, code or body: the tables hold only the tokens of leases, which are nobody's business.
IN_LISTS = ("id", "status", "template", "to_address", "attempts", "next_attempt_at", "last_smtp_code", "last_error")
IN_FULL = (
    *("id", "message_id", "status", "template", "locale", "to_address", "user_id", "priority", "attempts"),
    *("max_attempts", "lease_expiries", "in_doubt", "locked_by", "lease_until", "last_error_class", "last_smtp_code"),
    *("last_error", "created_at", "next_attempt_at", "expires_at", "sent_at", "finished_at", "request_id"),
)
OF_ATTEMPTS = ("started_at", "finished_at", "outcome", "phase", "code", "reply", "worker")


@click.group("mail", cls=Commands, epilog=EXIT_CODES)
# Here too, since a command's arguments are looked up before it begins.
@with_appcontext
def mail_commands() -> None:
    """See what became of each email, and fix what went wrong."""
    act_as_operator()


@mail_commands.command()
@json_option
def stats(*, as_json: bool) -> None:
    """Count emails by status, and say what keeps them waiting."""
    now = queries.stats()
    if as_json:
        print_json(asdict(now))
        return
    is_open = now.breaker_seconds is not None
    is_held = now.paused_seconds is not None
    print_fields(
        {
            **now.by_status,
            "due": now.due,
            "oldest due": duration(now.oldest_due_seconds),
            "sent in the last hour": now.sent_last_hour,
            "mail server": f"down for {duration(now.breaker_seconds)}: {now.breaker_reason}" if is_open else "up",
            "total limit": f"reached: {now.limit_reached}" if now.limit_reached else "not reached",
            "paused": f"for {duration(now.paused_seconds)}, by {now.paused_by}: {now.pause_reason}" if is_held else "",
            "workers alive": now.workers,
        }
    )


@mail_commands.command("list")
@click.option("--status", type=click.Choice(queries.STATUSES))
@click.option("--template", help="The kind of email, such as verify_email.")
@click.option("--address", help="The recipient's, in full.")
@click.option("--code", type=int, help="The mail server's last answer, such as 550.")
@click.option("--user", "user_id", type=int, help="The user's number.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--before", type=Mail(), help="Continue after this email.")
@wide_option
@json_option
def list_(*, limit: int, before: OutgoingEmail | None, wide: bool, as_json: bool, **wanted: Any) -> None:
    """List emails, newest first."""
    found = queries.mails(queries.Filter(**wanted), limit=limit + 1, beyond=before.id if before else None)
    shown = found[:limit]
    rows = [picked(email, IN_LISTS) for email in shown]
    print_rows(rows, brief=[email_brief(email) for email in shown], as_json=as_json, wide=wide)
    if len(found) > limit:
        click.echo(f"more: --before {rows[-1]['id']}", err=True)


@mail_commands.command()
@click.argument("email", metavar="ID", type=Mail())
@wide_option
@json_option
def show(*, email: OutgoingEmail, wide: bool, as_json: bool) -> None:
    """Show one email and each try at it. The beginning of its ID is enough."""
    fields = picked(email, IN_FULL)
    attempts = queries.attempts_at(email.id)
    tries = [picked(attempt, OF_ATTEMPTS) for attempt in attempts]
    if as_json:
        print_json({**fields, "delivery_attempts": tries})
        return
    print_fields(fields)
    if tries:
        click.echo()
        print_rows(tries, brief=[_attempt_brief(attempt) for attempt in attempts], wide=wide)


@mail_commands.command("workers")
@click.option("--check", is_flag=True, help="For health checks: exit with 1 if no worker on this machine is alive.")
@wide_option
@json_option
def workers_(*, check: bool, wide: bool, as_json: bool) -> None:
    """List the workers, and whether they are alive."""
    found = [worker for worker in queries.workers() if not check or worker.host == heartbeats.HOST]
    brief = [_worker_brief(worker) for worker in found]
    print_rows([asdict(worker) for worker in found], brief=brief, as_json=as_json, wide=wide)
    if not any(worker.is_alive for worker in found):
        click.echo(f"no worker is alive; this starts one: {remedies.start_worker()}", err=True)
        sys.exit(FOUND if check else 0)


@mail_commands.command("doctor")
@json_option
def run_doctor(*, as_json: bool) -> None:
    """Check the database, the queue, the mail server, and every promise. Each finding says what to type."""
    report = doctor.examine()
    if as_json:
        print_json({"version": version(), "is_well": report.is_well, **asdict(report)})
    else:
        click.echo(f"version {version()}", err=True)
        for finding in report.findings:
            click.echo(f"{finding.text}: {finding.command}")
        if report.is_well:
            click.echo("all is well")
        elif not report.findings:
            click.echo("nothing is broken, but emails are waiting")
        for note in report.notes:
            click.echo(f"note: {note.text}: {note.command}")
    sys.exit(FOUND if report.findings else 0)


# For a terminal: what is read first comes first, and what may be cut off comes last.


def email_brief(email: OutgoingEmail) -> dict[str, Any]:
    return {
        "id": email.id,
        "status": email.status,
        "queued": email.created_at,
        "email": email.template,
        "to": email.to_address,
        "reason": " ".join(plain(part) for part in (email.last_smtp_code, email.last_error) if part),
    }


def _attempt_brief(attempt: DeliveryAttempt) -> dict[str, Any]:
    return {
        "ended": attempt.finished_at,
        "outcome": attempt.outcome,
        "step": attempt.phase,
        "code": attempt.code,
        "reply": attempt.reply,
    }


def _worker_brief(worker: queries.Worker) -> dict[str, Any]:
    return {
        "host": worker.host,
        "process": worker.pid,
        "state": "alive" if worker.is_alive else "gone",
        "seen": worker.seen_at,
        "started": worker.started_at,
        "sending": worker.sending,
        "version": worker.version,
    }
