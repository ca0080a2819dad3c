"""Failed attempts: what each means for its email and for all others, and how it is recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import structlog

from webapp.db.base import db
from webapp.delivery import circuit_breaker, reach
from webapp.delivery.circuit_breaker import REASON_MAX
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
    known = circuit_breaker.reason()
    if isinstance(error, SmtpError):
        failure = Failure("Refused" if error.code else "NoAnswer", error.reply, error.phase, error.code)
        meant = _judge(email, error, failure)
    elif isinstance(error, PutAside):
        failure = Failure(outgoing_email.SLOW, "no answer so far, and other emails are waiting", "recipient")
        meant = "slow"
        _requeue_ever_longer(email, failure)
    else:
        # Whatever the cause, it must block neither the other emails nor this one forever.
        error_class = type(error).__name__
        failure = Failure(error_class, f"{error_class}: {error}", "dot" if is_past_dot else "data")
        if is_past_dot:
            meant = "doubt"
            _doubt(email, failure)
        else:
            meant = "silence"
            outcomes.postpone(email, failure)
        log.error("email_failed", exc_info=error)
    db.session.commit()
    text = attempts.redact(failure.text)
    details = {"meaning": meant, "phase": failure.phase, "smtp_code": failure.code, "error": text}
    if not tell_if_dead(email, **details):
        # A probe that fails like the one before is no news.
        tell = log.debug if meant == "server" and attempts.redact(str(error))[:REASON_MAX] == known else log.warning
        tell("email_deferred", duration=leases.tried_for(email), **details)
    return DeliveryFailed(attempts.redact(str(error)) or text, meant)


def _judge(email: OutgoingEmail, error: SmtpError, failure: Failure) -> Meaning:
    """Record what an answer, or the lack of one, means for this email and all others."""
    meant: Meaning = replies.meaning(error)
    if isinstance(error, Aborted) or (mail.stopping and error.code is None):
        # We ended the conversation ourselves: that says nothing about the server or the email.
        outcomes.requeue(email, replace(failure, error_class="Aborted"), in_doubt=meant == "doubt")
        return "ours"
    if (
        meant == "policy"
        and email.last_error_class == outgoing_email.POLICY
        and attempts.accepted_others_since(email.id)
    ):
        # The server accepts other emails and refused this one again: the problem is this email.
        meant = "later" if (error.code or 0) < 500 else "never"
    if isinstance(error, Crowded) and attempts.accepted_within(CROWDED_SECONDS):
        # Other workers have every connection that the server allows us, and they are sending.
        outcomes.requeue(email, replace(failure, error_class="Crowded"), delay=CROWDED_DELAY)
        return "ours"
    if meant == "server":
        _leave_alone(email, error, replace(failure, error_class=outgoing_email.SERVER_FAILURE))
    elif meant == "policy":
        _requeue_ever_longer(email, replace(failure, error_class=outgoing_email.POLICY))
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
        _requeue_ever_longer(email, failure)
    elif meant == "never":
        outcomes.bury(email, failure)
    else:
        outcomes.postpone(email, failure)
    return meant


def _requeue_ever_longer(email: OutgoingEmail, failure: Failure) -> None:
    outcomes.requeue(email, failure, delay=backoff.backoff(attempts.tries(email.id)))


def _leave_alone(email: OutgoingEmail, error: SmtpError, failure: Failure) -> None:
    """Open the breaker; if other processes reach the server, only this process stops trying for a while.

    Another consumer probes at once: perhaps only this process doesn't reach the server.
    """
    reason = attempts.redact(str(error))
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
        outcomes.bury(email, replace(failure, error_class=outgoing_email.UNCONFIRMED), in_doubt=True)


def tell_if_dead(email: OutgoingEmail, **details: object) -> bool:
    if email.is_buried:
        log.error("email_dead", duration=leases.tried_for(email), **details)
    return email.is_buried
