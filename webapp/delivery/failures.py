"""Failed attempts: what each means for its email and for all others, and how it is recorded."""

from __future__ import annotations

from typing import Literal

import structlog

from webapp.db.base import db
from webapp.delivery import circuit_breaker, reach
from webapp.extensions import mail
from webapp.outbox import attempts, backoff, leases, outcomes, outgoing_email
from webapp.outbox.attempts import Failure
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp import protocol, replies
from webapp.smtp.protocol import Aborted, Crowded, SmtpError

log = structlog.get_logger(__name__)

# If the server refuses one more connection but accepted an email this recently, other workers have its connections:
# the email waits for one of them.
CROWDED_SECONDS = 60.0
CROWDED_DELAY = 2.0


class PutAside(Exception):
    """Other emails are due and no worker is free: this one has waited long enough for its answer."""


Meaning = replies.Meaning | Literal["ours", "slow", "unsendable"]


class DeliveryFailed(Exception):
    """An attempt that ended without a 250; the outbox has the time of the next one, if any.

    `meaning`: what the server's answer means, or why there was none.
    """

    def __init__(self, text: str, meaning: Meaning) -> None:
        self.meaning = meaning
        super().__init__(text)

    @property
    def is_everybodys(self) -> bool:
        """Whether any other email would fail as well."""
        return self.meaning in {"server", "policy", "ours"}

    @property
    def is_answer(self) -> bool:
        """Whether the server judged this very email: then it is up."""
        return self.meaning in {"later", "never"}

    @property
    def is_slow(self) -> bool:
        """Whether the server did not answer for this email in time."""
        return self.meaning in {"slow", "silence", "doubt"}


def record(email: OutgoingEmail, error: Exception, *, is_past_dot: bool) -> DeliveryFailed:
    """Record what went wrong, and what it means for this email and all others; return the failure to raise."""
    meant: Meaning
    phase: str
    code: int | None = None
    if isinstance(error, SmtpError):
        meant = _judge(email, error)
        phase, code, text = error.phase, error.code, attempts.redact(error.reply)
    elif isinstance(error, PutAside):
        meant, phase, text = "slow", "recipient", "no answer so far, and other emails are waiting"
        outcomes.requeue(
            email,
            Failure(outgoing_email.SLOW, text, phase=phase),
            delay=backoff.backoff(attempts.tries(email.id)),
        )
    else:
        # Whatever the cause, it must block neither the other emails nor this one forever.
        meant, phase = ("doubt", "dot") if is_past_dot else ("silence", "data")
        text = attempts.redact(f"{type(error).__name__}: {error}")
        failure = Failure(type(error).__name__, text, phase=phase)
        if is_past_dot:
            _doubt(email, failure)
        else:
            outcomes.postpone(email, failure)
        log.error("email_failed", exc_info=error)
    db.session.commit()
    if not tell_if_dead(email, meaning=meant, phase=phase, smtp_code=code, error=text):
        log.warning(
            "email_deferred",
            duration=leases.held_for(email),
            meaning=meant,
            phase=phase,
            smtp_code=code,
            error=text,
        )
    return DeliveryFailed(attempts.redact(str(error)) or text, meant)


def _judge(email: OutgoingEmail, error: SmtpError) -> Meaning:
    """Record what an answer, or the lack of one, means for this email and all others."""
    failure = Failure("Refused" if error.code else "NoAnswer", error.reply, phase=error.phase, code=error.code)
    meant: Meaning = replies.meaning(error)
    if isinstance(error, Aborted) or (mail.stopping and error.code is None):
        # We ended the conversation ourselves: that says nothing about the server or the email.
        outcomes.requeue(email, Failure("Aborted", error.reply, phase=error.phase), in_doubt=meant == "doubt")
        return "ours"
    if (
        meant == "policy"
        and email.last_error_class == outgoing_email.POLICY
        and attempts.accepted_others_since(email.id)
    ):
        # The server accepts other emails and refused this one again: the problem is this email.
        meant = "later" if error.code is None or error.code < 500 else "never"
    if isinstance(error, Crowded) and attempts.accepted_within(CROWDED_SECONDS):
        # Other workers have every connection that the server allows us, and they are sending.
        outcomes.requeue(email, Failure("Crowded", error.reply, error.phase, error.code), delay=CROWDED_DELAY)
        return "ours"
    if meant == "server":
        _leave_alone(email, error)
    elif meant == "policy":
        outcomes.requeue(
            email,
            Failure(outgoing_email.POLICY, error.reply, error.phase, error.code),
            delay=backoff.backoff(attempts.tries(email.id)),
        )
        if circuit_breaker.refuses_everybody():
            circuit_breaker.trip(
                f"every email is refused, most recently with {attempts.redact(str(error))}", probe_in=0
            )
        else:
            meant = "later"
    elif meant == "doubt":
        _doubt(email, failure)
    elif meant == "silence" and email.attempts and not attempts.accepted_others_since(email.id):
        # Nothing was accepted since: this may be an outage, and an outage must not use up an email's attempts.
        outcomes.requeue(email, failure, delay=backoff.backoff(attempts.tries(email.id)))
    elif meant == "never":
        outcomes.bury(email, failure)
    else:
        outcomes.postpone(email, failure)
    return meant


def _leave_alone(email: OutgoingEmail, error: SmtpError) -> None:
    """Open the breaker; if other processes reach the server, only this process stops trying for a while.

    Another consumer probes at once: perhaps only this process doesn't reach the server.
    """
    reason = attempts.redact(str(error))
    failure = Failure(outgoing_email.SERVER_FAILURE, error.reply, error.phase, error.code)
    # A server that answers may accept the next email: what it says about our sender may depend on the recipient.
    answered = error.phase in protocol.AT_THE_MAIL and error.code != 421
    if not answered and reach.do_others_reach_it():
        # The problem is on this side: this machine's password, network or resources. Another process sends the email.
        reach.note_failure(reason)
        outcomes.requeue(email, failure, delay=CROWDED_DELAY)
    else:
        others_probe = not answered and reach.note_outage()
        # Without others, behind all emails, so that one problem email does not take every probe.
        outcomes.requeue(email, failure, delay=CROWDED_DELAY if others_probe else circuit_breaker.PROBE_SECONDS)
        circuit_breaker.trip(reason, probe_in=0 if others_probe or answered else circuit_breaker.PROBE_SECONDS)
    # Idle connections are useless until the next probe, and the server counts them.
    mail.close()


def _doubt(email: OutgoingEmail, failure: Failure) -> None:
    """Retry an email that may have arrived, only a few times and far apart; then bury it as unconfirmed."""
    tries = attempts.in_doubt(email.id, email.attempts)
    if tries < len(backoff.DOUBT_DELAYS) and email.attempts + 1 < email.max_attempts:
        outcomes.postpone(email, failure, delay=backoff.DOUBT_DELAYS[tries], in_doubt=True)
    else:
        outcomes.bury(
            email, Failure(outgoing_email.UNCONFIRMED, failure.text, failure.phase, failure.code), in_doubt=True
        )


def tell_if_dead(email: OutgoingEmail, **details: object) -> bool:
    if email.is_buried:
        log.error("email_dead", duration=leases.held_for(email), **details)
    return email.is_buried
