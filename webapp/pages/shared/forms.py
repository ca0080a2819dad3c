"""Shared by the forms: cleaning, checking, and how a form is shown again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from inspect import get_annotations
from typing import Any, ClassVar

from flask import current_app, request
from flask_babel import gettext, ngettext
from flask_babel import lazy_gettext as _
from flask_wtf import CSRFProtect, FlaskForm
from sqlalchemy import Column
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from wtforms import Field, PasswordField, StringField
from wtforms.validators import DataRequired, InputRequired, Length, ValidationError

from webapp.accounts import passwords, users
from webapp.accounts.identifiers import email_addresses, usernames
from webapp.config import FORM_FIELDS
from webapp.pages.shared import rate_limits

# Characters that a field may have which says nothing else: enough for any name or address before it is normalized.
LONGEST = 512
CODE_MAX = 200

HEARD_BYTES = 2**20

# What a form has besides, once it is made.
OF_EVERY_FORM = ("csrf_token", "form_errors", "meta")

# For pages that have no form of ours: it refuses what comes without a token before they are asked.
csrf = CSRFProtect()

URLENCODED = "application/x-www-form-urlencoded"


class Words:
    """WTForms' own messages, in the languages that we speak: it speaks fewer."""

    SAID = (
        _("Not a valid choice."),
        _("Not a valid date value."),
        _("Not a valid integer value."),
        _("Number must be between %(min)s and %(max)s."),
    )

    def gettext(self, text: str) -> str:
        return str(gettext(text))

    def ngettext(self, one: str, many: str, number: int) -> str:
        return str(ngettext(one, many, number))


class Form(FlaskForm):
    """A form that is shown again, with its status, when something is wrong with it."""

    # The setting that limits what this form does, by network. A form that is sent back does not count for it.
    limit: ClassVar[str | None] = None

    class Meta(FlaskForm.Meta):  # noqa: D106 - WTForms' name for a form's options
        def wrap_formdata(self, _form: FlaskForm, formdata: object) -> MultiDict[str, str] | None:
            """Read what a form sends, and neither JSON nor files; nothing when told so."""
            if request.method != "POST" or formdata is None:
                return None
            try:
                return sent()
            except RequestEntityTooLarge:
                hear_out()
                raise

        def get_translations(self, _form: FlaskForm) -> Words:
            return Words()

    def validate(self, extra_validators: object = None) -> bool:
        """Judge what was sent, cheap things first: nothing dear is done for whoever may not have it done.

        Raises TooManyRequests. Each step is taken only when nothing was wrong before.
        """
        if not (self._has_token() and are_short(self)):
            return False
        rate_limits.spend("RATELIMIT_POST", rate_limits.network())
        if self.limit:
            rate_limits.check(self.limit, rate_limits.network())
        return super().validate(extra_validators) and self.has_strong_password()

    def has_strong_password(self) -> bool:
        """Return whether a new password in it is hard to guess; else say so at its field. Scoring takes longest."""
        return True

    def _has_token(self) -> bool:
        return "csrf_token" not in self or self.csrf_token.validate(self)

    @property
    def is_stale(self) -> bool:
        """Whether the CSRF token was missing or old."""
        return "csrf_token" in self.errors

    @property
    def status(self) -> int:
        if self.is_stale:
            return 400
        return 422 if self.errors else 200


def sent() -> MultiDict[str, str]:
    """Return the fields that were sent. Raises RequestEntityTooLarge."""
    # Werkzeug counts those of multipart alone.
    if request.mimetype == URLENCODED and request.get_data().count(b"&") > FORM_FIELDS:
        raise RequestEntityTooLarge
    return request.form


def hear_out() -> None:
    """Read what is left of a body that is too large: whoever is hung up on while sending does not get our answer."""
    left = HEARD_BYTES
    while left > 0 and (read := request.environ["wsgi.input"].read(min(left, 2**16))):
        left -= len(read)


def are_short(form: Iterable[Field]) -> bool:
    """Return whether no field is too long as it was sent, before anything is normalized, parsed or scored.

    Characters are counted, of which each has at most four bytes.
    """
    for field in form:
        longest = getattr(field.flags, "maxlength", None)
        if any(len(sent.strip()) > (longest or LONGEST) for sent in field.raw_data or ()):
            field.errors = [
                _("Please use at most %(max)d characters.", max=longest) if longest else _("This is too long.")
            ]
    return not any(field.errors for field in form)


def strip(text: str | None) -> str:
    return (text or "").strip()


# They turn around how the text beside them reads.
BIDI_CONTROLS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class OneLine:
    """Refuses line breaks, NUL and other control characters: they are nobody's name, and could end a header."""

    def __call__(self, _form: FlaskForm, field: Field) -> None:
        text = field.data or ""
        if any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in text) or BIDI_CONTROLS & set(text):
            raise ValidationError(_("Please leave out line breaks and other control characters."))


class LongEnough:
    def __call__(self, _form: FlaskForm, field: Field) -> None:
        minimum = current_app.config["PASSWORD_MIN_LENGTH"]
        if len(field.data or "") < minimum:
            raise ValidationError(_("Please use at least %(minimum)s characters.", minimum=minimum))


def western(text: str | None) -> str:
    """Return the text, as far as a code may go, with the digits of every script as ours."""
    return "".join(str(unicodedata.decimal(char, char)) for char in (text or "")[:CODE_MAX])


def code_field() -> StringField:
    return StringField(
        _("Code from the email"),
        filters=[strip, western],
        # Whoever copies the whole sentence means the digits in it.
        validators=[
            DataRequired(_("Please enter the six digits.")),
            Length(max=CODE_MAX, message=_("This is too long.")),
        ],
        description=_("The six-digit code from the email."),
        render_kw={"autocomplete": "one-time-code", "inputmode": "numeric", "class": "digits", "spellcheck": "false"},
    )


def read_address(field: Field) -> email_addresses.Address:
    """Raises ValidationError."""
    try:
        return email_addresses.parse_address(field.data)
    except email_addresses.AddressInvalid as error:
        raise ValidationError(
            _("Please check this address: it should look like name@example.com, in plain letters before the @.")
        ) from error


def is_strong(field: Field, *words: str) -> bool:
    """Return whether a password is not among the first guesses; else say why at its field.

    Those are common and breached passwords, and `words`, which are the person's own.
    """
    parts = [part for word in (*words, current_app.config["APP_NAME"]) for part in re.split(r"[\s@._-]+", word)]
    reasons = passwords.weakness(field.data, [*words, *parts])
    if reasons:
        field.errors = [_("This is easy to guess. %(reason)s", reason=" ".join(map(gettext, reasons)))]
    return not reasons


def new_password_field(label: str) -> PasswordField:
    return PasswordField(
        label,
        validators=[
            InputRequired(_("Please choose a password.")),
            LongEnough(),
            Length(max=passwords.MAX_LENGTH, message=_("Please use at most %(max)d characters.")),
        ],
        render_kw={"autocomplete": "new-password"},
    )


def read_username(text: str) -> str:
    """Return the username that somebody chooses, as it is shown. Raises UsernameInvalid."""
    return usernames.choose(text, current_app.config["RESERVED_USERNAMES"])


def username_advice(error: usernames.UsernameInvalid) -> Any:
    return {
        "length": _("Please use at most %(max)d characters.", max=usernames.LONGEST),
        "characters": _("Please use only letters, digits, dots, hyphens and underscores."),
        "empty": _("Please use at least one letter or digit."),
        "reserved": _("This username is reserved. Please choose another."),
    }[error.reason]


class NameFields:
    """Username, full name and fields of one's own: the same fields and rules wherever they are asked."""

    username = StringField(
        _("Username"),
        filters=[strip],
        validators=[DataRequired(_("Please choose a username."))],
        description=_("Letters, digits, dots, hyphens and underscores. You can sign in with it."),
        render_kw={"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"},
    )
    full_name = StringField(
        _("Full name"),
        filters=[strip],
        validators=[
            Length(max=users.FULL_NAME_MAX, message=_("Please use at most %(max)d characters.")),
            OneLine(),
        ],
        render_kw={"autocomplete": "name"},
    )

    name: str

    def __init_subclass__(cls) -> None:
        """Raises TypeError."""
        super().__init_subclass__()
        refuse_own_names(*(base for base in cls.__mro__ if base is not NameFields))

    @property
    def own(self) -> dict[str, str]:
        """The fields of one's own, as they were filled in."""
        return {column.name: getattr(self, column.name).data for column in users.OWN_FIELDS}

    @property
    def own_fields(self) -> list[Field]:
        return [getattr(self, column.name) for column in users.OWN_FIELDS]

    def validate_username(self, field: StringField) -> None:
        try:
            self.name = read_username(field.data)
        except usernames.UsernameInvalid as error:
            raise ValidationError(username_advice(error)) from error


def _own_field(column: Column[Any]) -> StringField:
    is_required = column.info.get("required", False)
    return StringField(
        column.info["label"],
        filters=[strip],
        validators=[
            *([DataRequired(_("Please fill this in."))] if is_required else []),
            Length(max=getattr(column.type, "length", None), message=_("Please use at most %(max)d characters.")),
            OneLine(),
        ],
        description=column.info.get("hint", ""),
    )


def refuse_own_names(*forms: type) -> None:
    """Raises TypeError if a field of one's own would take the place of what one of these has."""
    for form in forms:
        ours = {*vars(form), *get_annotations(form), *OF_EVERY_FORM}
        for column in users.OWN_FIELDS:
            if column.name in ours:
                raise TypeError(f"own/fields.py: {column.name} must be a name that our forms do not have yet")


refuse_own_names(NameFields)
for _column in users.OWN_FIELDS:
    setattr(NameFields, _column.name, _own_field(_column))
