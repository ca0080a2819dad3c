"""A new password: its field, the check that it is hard to guess, and the meter that checks while it is typed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from flask import current_app
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from flask_babel import lazy_gettext as _
from flask_wtf import FlaskForm
from wtforms import Field, PasswordField
from wtforms.validators import InputRequired, Length, Optional, ValidationError

from webapp.accounts import passwords
from webapp.pages.shared.forms import Form

# By zxcvbn's score; lower scores are refused.
LEVELS = {2: _("Okay"), 3: _("Good"), 4: _("Very good")}


class LongEnough:
    def __call__(self, _form: FlaskForm, field: Field) -> None:
        minimum = current_app.config["PASSWORD_MIN_LENGTH"]
        if len(field.data or "") < minimum:
            raise ValidationError(_("Please use at least %(minimum)s characters.", minimum=minimum))


def new_password_field(label: str, *, is_optional: bool = False) -> PasswordField:
    return PasswordField(
        label,
        validators=[
            Optional() if is_optional else InputRequired(_("Please choose a password.")),
            LongEnough(),
            Length(max=passwords.MAX_LENGTH, message=_("Please use at most %(max)d characters.")),
        ],
        render_kw={"autocomplete": "new-password"},
    )


def is_strong(field: Field, words: Iterable[str]) -> bool:
    """Return whether a password is not among the first guesses; otherwise add the reason to its field.

    The first guesses are common and breached passwords, and `words`, which are the person's own.
    """
    return _score(field, words) > passwords.WEAK_SCORE


def measure(form: Form, field: Field, words: Callable[[], Iterable[str]]) -> ResponseReturnValue:
    """Say about a password that is being typed what its form would say, or how good it is.

    Nothing of it is stored. Raises TooManyRequests, and whatever `words` raises.
    """
    if form.may_be_judged("RATELIMIT_STRENGTH") and field.validate(form):
        score = _score(field, words())
        if score > passwords.WEAK_SCORE:
            return {"level": score, "text": str(LEVELS[score])}
    if not field.errors:
        # Something other than the password is wrong.
        return {}, form.status
    return {"level": passwords.WEAK_SCORE, "text": str(field.errors[0])}


def _score(field: Field, words: Iterable[str]) -> int:
    words = list(words)
    parts = [part for word in (*words, current_app.config["APP_NAME"]) for part in re.split(r"[\s@._-]+", word)]
    strength = passwords.strength(field.data, [*words, *parts])
    if strength.reasons:
        field.errors = [_("This is easy to guess. %(reason)s", reason=" ".join(map(gettext, strength.reasons)))]
    return strength.score
