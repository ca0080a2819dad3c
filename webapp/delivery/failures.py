"""Failed emails: what each failure means for the email and for all others, and what is written down of it."""

from __future__ import annotations

from typing import Literal

import structlog

from webapp.db.base import db
from webapp.delivery import circuit_breaker
from webapp.extensions import mail
from webapp.outbox import attempts, backoff, leases, outcomes, outgoing_email
from webapp.outbox.attempts import Failure
from webapp.outbox.outgoing_email import OutgoingEmail
from webapp.smtp import protocol, replies
from webapp.smtp.protocol import Aborted, Crowded, SmtpError

log = structlog.get_logger(__name__)

# A server that wants no more connections than other workers have is theirs while it took a mail so lately; the mail
# waits for one of them.
CROWDED_SECONDS = 60.0
CROWDED_DELAY = 2.0


class PutAside(Exception):
    """Others wait, and nobody is free for them: this mail has waited long enough for its answer."""


Meaning = replies.Meaning | Literal["ours", "slow", "unsendable"]


class DeliveryFailed(Exception):
    """This try sent nothing; the outbox knows when the next one is.

    `meaning`: of the answer, if there was a conversation, or why there is none.
    """

    def __init__(self, text: str, meaning: Meaning) -> None:
        self.meaning = meaning
        super().__init__(text)

    @property
    def is_everybodys(self) -> bool:
        """Whether any other mail would fail as well."""
        return self.meaning in {"server", "policy", "ours"}

    @property
    def is_answer(self) -> bool:
        """Whether the server answered to this very mail: then it is alive."""
        return self.meaning in {"later", "never"}

    @property
    def is_slow(self) -> bool:
        """Whether it did not answer to this mail in time."""
        return self.meaning in {"slow", "silence", "doubt"}


def record(email: OutgoingEmail, error: Exception, *, is_past_dot: bool) -> DeliveryFailed:
    """Write down what went wrong, and what that means for the mail and for all; return it."""
    meant: Meaning
    phase: str
    code: int | None = None
    if isinstance(error, SmtpError):
        meant = _judge(email, error)
        phase, code, text = error.phase, error.code, attempts.redact(error.reply)
    elif isinstance(error, PutAside):
        meant, phase, text = "slow", "recipient", "no answer so far, and others wait"
        outcomes.give_back(
            email,
            Failure(outgoing_email.SLOW, text, phase=phase),
            delay=backoff.backoff(attempts.tries(email.id)),
        )
    else:
        # Of the mail, of ours, of the machine: whatever it is, others are not kept from going, nor this one for ever.
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
    """Write down what an answer, or that none came, means for the mail, and for all mails."""
    failure = Failure("Refused" if error.code else "NoAnswer", error.reply, phase=error.phase, code=error.code)
    meant: Meaning = replies.meaning(error)
    if isinstance(error, Aborted) or (mail.stopping and error.code is None):
        # It was us who ended the conversation: that says nothing about the server, or the mail.
        outcomes.give_back(email, Failure("Aborted", error.reply, phase=error.phase), in_doubt=meant == "doubt")
        return "ours"
    if (
        meant == "policy"
        and email.last_error_class == outgoing_email.POLICY
        and attempts.accepted_others_since(email.id)
    ):
        # The server takes others, and not this one again: then it is this one.
        meant = "later" if error.code is None or error.code < 500 else "never"
    if isinstance(error, Crowded) and attempts.accepted_within(CROWDED_SECONDS):
        # Other workers have all connections that the server allows us, and mails go there.
        outcomes.give_back(email, Failure("Crowded", error.reply, error.phase, error.code), delay=CROWDED_DELAY)
        return "ours"
    if meant == "server":
        outcomes.give_back(
            email,
            Failure(outgoing_email.SERVER_FAILURE, error.reply, error.phase, error.code),
            # After others that wait, so that one mail in trouble does not take every probe.
            delay=circuit_breaker.PROBE_SECONDS,
        )
        # One that answers may take the next mail: what it says of our sender may be of one recipient's making.
        answered = error.phase in protocol.AT_THE_MAIL and error.code != 421
        circuit_breaker.trip(attempts.redact(str(error)), probe_in=0 if answered else circuit_breaker.PROBE_SECONDS)
        # Nobody needs them before the next probe, and the server counts them.
        mail.close()
    elif meant == "policy":
        outcomes.give_back(
            email,
            Failure(outgoing_email.POLICY, error.reply, error.phase, error.code),
            delay=backoff.backoff(attempts.tries(email.id)),
        )
        if circuit_breaker.refuses_everybody():
            circuit_breaker.trip(f"all are refused, at last with {attempts.redact(str(error))}", probe_in=0)
        else:
            meant = "later"
    elif meant == "doubt":
        _doubt(email, failure)
    elif meant == "silence" and email.attempts and not attempts.accepted_others_since(email.id):
        # Nobody was accepted meanwhile: it may be that none is, and an outage ends no mail.
        outcomes.give_back(email, failure, delay=backoff.backoff(attempts.tries(email.id)))
    elif meant == "never":
        outcomes.bury(email, failure)
    else:
        outcomes.postpone(email, failure)
    return meant


def _doubt(email: OutgoingEmail, failure: Failure) -> None:
    """Try again what may have arrived, seldom and not often; then say that nobody knows."""
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
