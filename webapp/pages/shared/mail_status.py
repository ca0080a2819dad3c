"""The status of a link's email, as people see it: where it is, and since when.

It must not reveal whether an address has an account, or whether others had email sent to it: so an email that waits
for its address's limit is shown as sent, as it would be without the limit. If the recipient refuses it later, that is
shown: people who wait for an email must learn that none is coming.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask_babel import format_timedelta

from webapp.db import clock
from webapp.delivery import circuit_breaker
from webapp.i18n import ago
from webapp.outbox import attempts
from webapp.outbox.outgoing_email import SERVER_FAILURE, OutgoingEmail
from webapp.outbox.reaper import EXPIRED
from webapp.outbox.transitions import CANCELED_BY_OPERATOR

# An email that has been due for longer is waiting for something: a worker, or its turn.
SLOW_SECONDS = 5
# Seconds until sending another email makes sense.
RESEND_SECONDS = 60

# Longer times are shown in minutes.
MANY_SECONDS = 100

# Up to so many seconds after sending, how often to look, in seconds: pages stay open for days.
SENT_INTERVALS = ((60, 3), (600, 30), (float("inf"), 120))


@dataclass(frozen=True)
class Progress:
    """`state` is none, leaving, sending, slow, delayed, sent or failed.

    `seconds`: until the email is sent; `resend_in`: until another one may be sent; `reason`: what the recipient's
    server said; `interval`: in how many seconds to look again, or None.
    """

    state: str
    seconds: int = 0
    ago: str = ""
    resend_in: int = 0
    reason: str | None = None
    interval: int | None = None

    @property
    def leaves_in(self) -> str | None:
        """How long until the email is sent, in words, if that is too long for a countdown."""
        return format_timedelta(self.seconds, threshold=1.2) if self.seconds > MANY_SECONDS else None

    @property
    def can_resend(self) -> bool:
        return self.state in {"none", "sent", "failed"}


def of(email: OutgoingEmail | None) -> Progress:
    # Always asked: the time that an answer takes must not tell addresses apart.
    is_down = circuit_breaker.is_open()
    held_since = attempts.held_since(email.id) if email else None
    state = _state(email, is_down=is_down, was_held=held_since is not None)
    if email is None:
        return Progress(state)
    now = clock.now()
    seconds = max(0, round((email.next_attempt_at - now).total_seconds()))
    sent_at = held_since or email.finished_at
    since_sent = (now - sent_at).total_seconds() if sent_at else 0
    return Progress(
        state,
        seconds=seconds,
        ago=ago(since_sent),
        resend_in=resend_in((now - email.created_at).total_seconds()) if state == "sent" else 0,
        reason=email.last_error if state == "failed" else None,
        interval=_interval(state, seconds, since_sent),
    )


def resend_in(asked_ago: float) -> int:
    """Return in how many seconds another email makes sense."""
    return max(0, round(RESEND_SECONDS - asked_ago))


def _state(email: OutgoingEmail | None, *, is_down: bool, was_held: bool) -> str:
    if email is None:
        return "none"
    if was_held and (email.status in {"queued", "sending"} or email.last_error_class == EXPIRED):
        return "sent"
    if email.status == "queued":
        return _queued(email, is_down=is_down)
    if email.last_error_class == CANCELED_BY_OPERATOR:
        return "failed"
    # Nobody may learn that somebody else verified the address: an email that was canceled for it looks sent.
    return {"sending": "sending", "sent": "sent", "dead": "failed", "canceled": "sent"}[email.status]


def _queued(email: OutgoingEmail, *, is_down: bool) -> str:
    if email.last_error is not None and email.last_error_class != SERVER_FAILURE:
        return "delayed"
    overdue = (clock.now() - email.next_attempt_at).total_seconds()
    if is_down or email.last_error is not None or overdue > SLOW_SECONDS:
        return "slow"
    return "leaving" if overdue < 0 else "sending"


def _interval(state: str, seconds: int, since_sent: float) -> int | None:
    """Return how often to look: every second during a countdown, rarely once little is expected to change."""
    if state in {"none", "failed"}:
        return None
    if state == "leaving":
        return 1 if seconds <= MANY_SECONDS else 10
    if state == "sent":
        # Coming back to this page from another tab also makes it look at once.
        return next(every for until, every in SENT_INTERVALS if since_sent < until)
    return 2 if state == "sending" else 5
