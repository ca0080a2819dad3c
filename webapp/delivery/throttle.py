"""How fast mails may go in all: each takes its turn, and the turns of all workers are a line."""

from __future__ import annotations

from datetime import datetime, timedelta

from flask import current_app
from limits import RateLimitItem
from sqlalchemy import case, select, update
from sqlalchemy.orm import Mapped, mapped_column

from webapp.db.clock import db_now, is_ahead
from webapp.extensions import Model, db

# No more workers than this stand in line: a turn that is further ahead was given while the clock was wrong.
LONGEST = 100


class MailPace(Model):
    """One row, which all workers share: when the next turn is."""

    __tablename__ = "mail_pace"

    id: Mapped[int] = mapped_column(primary_key=True)
    next_at: Mapped[datetime | None]


def is_pace(limit: RateLimitItem) -> bool:
    """Return whether the limit is of seconds: mails then go evenly, rather than many at once and then none."""
    return limit.GRANULARITY.name == "second"


def interval() -> float:
    """Return the seconds from one turn to the next; 0 when mails may go as fast as they can."""
    limits: list[RateLimitItem] = current_app.config["MAIL_LIMIT_TOTAL"]
    return max((limit.get_expiry() / limit.amount for limit in limits if is_pace(limit)), default=0.0)


def take_turn() -> float:
    """Take the next turn, and commit; return in how many seconds it is."""
    if not (seconds := interval()):
        return 0.0
    next_turn = case((is_ahead(MailPace.next_at, LONGEST * seconds), MailPace.next_at), else_=db_now())
    # Whoever comes at the same moment waits here for the few milliseconds until the commit.
    pace = db.session.execute(
        select(next_turn.label("turn"), db_now().label("now")).select_from(MailPace).with_for_update(of=MailPace)
    ).one()
    db.session.execute(
        update(MailPace).values(next_at=pace.turn + timedelta(seconds=seconds)),
        execution_options={"synchronize_session": False},
    )
    db.session.commit()
    return max(0.0, float((pace.turn - pace.now).total_seconds()))


def is_full() -> bool:
    """Return whether mails wait for their turns just now."""
    seconds = interval()
    return bool(seconds) and db.session.scalar(select(is_ahead(MailPace.next_at, LONGEST * seconds))) is True
