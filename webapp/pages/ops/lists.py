"""Shared by the lists: filters in the URL, pagination, sort order, and times in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from babel.dates import format_timedelta
from flask import request, url_for
from flask_babel import get_locale
from flask_babel import lazy_gettext as _
from wtforms import DateField, Form
from wtforms.validators import Length, Optional

from webapp import i18n
from webapp.db import clock
from webapp.pages.ops.access import blueprint
from webapp.pages.shared.language import Words

# Beyond this a list says "more than": counting a million rows takes a while.
COUNTED = 10_000
# The value of `sort` for lists that begin with the oldest row.
OLDEST = "oldest"


class DaysForm(Form):
    """A filter by date; always sent by GET, so that it can be a link."""

    class Meta:  # noqa: D106 - WTForms' name for a form's options
        def get_translations(self, _form: Form) -> Words:
            return Words()

    since = DateField(_("From (UTC)"), validators=[Optional()])
    until = DateField(_("To (UTC)"), validators=[Optional()])

    @property
    def begin(self) -> datetime | None:
        """The first moment that is included."""
        return datetime.combine(self.since.data, time(), tzinfo=UTC) if self.since.data else None

    @property
    def end(self) -> datetime | None:
        """The first moment that is no longer included; none comes after the last day of the calendar."""
        if self.until.data in {None, date.max}:
            return None
        return datetime.combine(self.until.data, time(), tzinfo=UTC) + timedelta(days=1)


def short(length: int) -> Length:
    return Length(max=length, message=_("Please use at most %(max)d characters."))


@dataclass(frozen=True)
class Page:
    """The part of a list that is shown: rows `first` to `last` of `total`, or of more if `is_more`.

    `turned_url` has the same list in reverse order.
    """

    number: int
    pages: int
    first: int
    last: int
    total: int
    is_more: bool
    start_url: str
    next_url: str | None
    turned_url: str


def page(size: int, shown: int, total: int, *, query: dict[str, str], more: object) -> Page:
    """Return the page at this URL. The URL has its number, since a list continues from a row.

    `query`: the list's filter; `more`: the key of the last row, if more rows follow.
    """
    number = request.args.get("page", 1, type=int)
    number = number if 1 <= number <= COUNTED else 1
    first = (number - 1) * size + 1
    last = first + shown - 1
    total, is_more = max(min(total, COUNTED), last), total > COUNTED
    sort, turned = (OLDEST, None) if is_oldest_first() else (None, OLDEST)

    def url(order: str | None, **place: Any) -> str:
        values: dict[str, Any] = {"sort": order, **place, **query}
        return url_for(request.endpoint or "", **values)

    return Page(
        number=number,
        pages=max(number, math.ceil(total / size)),
        first=first,
        last=last,
        total=total,
        is_more=is_more,
        start_url=url(sort),
        next_url=url(sort, before=more, page=number + 1) if more is not None else None,
        turned_url=url(turned),
    )


def is_oldest_first() -> bool:
    """Return whether the URL asks for the oldest rows first. Any other `sort` means the newest first."""
    return request.args.get("sort") == OLDEST


@blueprint.context_processor
def order() -> dict[str, object]:
    return {"oldest_first": is_oldest_first()}


@blueprint.app_template_filter()
def relative(at: datetime) -> str:
    return i18n.relative((clock.now() - at).total_seconds())


@blueprint.app_template_filter()
def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return format_timedelta(timedelta(seconds=seconds), format="short", threshold=2, locale=get_locale())


@blueprint.app_template_filter()
def within(seconds: float | None) -> str:
    """Say how long emails took at most; beyond the last bucket, only that they took longer."""
    return f"> {duration(86400)}" if seconds == math.inf else duration(seconds)


def pick(names: dict[str, Any]) -> dict[str, str]:
    """Return this URL's parameters with these names, for another URL."""
    return {name: value for name, value in request.args.items() if value and name in names}
