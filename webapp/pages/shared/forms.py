"""Shared by the forms: cleaning and checking fields, and showing a form again."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from inspect import get_annotations
from typing import Any, ClassVar

from flask import current_app, request
from flask_babel import lazy_gettext as _
from flask_wtf import CSRFProtect, FlaskForm
from sqlalchemy import Column
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge
from wtforms import EmailField, Field, StringField
from wtforms.validators import DataRequired, Length, ValidationError

from webapp.accounts import users
from webapp.accounts.identifiers import email_addresses, usernames
from webapp.config import FORM_FIELDS
from webapp.pages.shared import rate_limits
from webapp.pages.shared.language import Words

# The default limit of a field, in characters: enough for any name or address before it is normalized.
LONGEST = 512
CODE_MAX = 200

HEARD_BYTES = 2**20

# Attributes that every form has once it is built.
OF_EVERY_FORM = ("csrf_token", "form_errors", "meta")

# For pages without a form of ours: refuses posts without a token before they reach the page.
csrf = CSRFProtect()

URLENCODED = "application/x-www-form-urlencoded"


class Form(FlaskForm):
    """A form that is shown again, with its status, when something is wrong with it."""

    # The setting that limits this form per network. A form that is shown again with errors does not count.
    limit: ClassVar[str | None] = None

    class Meta(FlaskForm.Meta):  # noqa: D106 - WTForms' name for a form's options
        def wrap_formdata(self, _form: FlaskForm, formdata: object) -> MultiDict[str, str] | None:
            """Read form fields only, not JSON or files; none if there is no form, or `formdata` is None."""
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
        """Check what was sent, cheap checks first: nothing expensive is done for somebody over a limit.

        Raises TooManyRequests. Each step runs only if nothing was wrong before.
        """
        if not self.may_be_judged("RATELIMIT_POST"):
            return False
        if self.limit:
            rate_limits.check(self.limit, rate_limits.network())
        return super().validate(extra_validators) and self.has_strong_password()

    def may_be_judged(self, limit: str) -> bool:
        """Return whether its token is valid and no field is too long; if so, count it for this limit of its network.

        Raises TooManyRequests.
        """
        if not (self._has_token() and are_short(self)):
            return False
        rate_limits.spend(limit, rate_limits.network())
        return True

    def has_strong_password(self) -> bool:
        """Return whether a new password is hard to guess; otherwise add an error to its field. The slowest check."""
        return True

    def _has_token(self) -> bool:
        return "csrf_token" not in self or self.csrf_token.validate(self)

    @property
    def is_stale(self) -> bool:
        """Whether the CSRF token was missing or invalid."""
        return "csrf_token" in self.errors

    @property
    def status(self) -> int:
        if self.is_stale:
            return 400
        return 422 if self.errors else 200


def sent() -> MultiDict[str, str]:
    """Return the fields that were sent. Raises RequestEntityTooLarge."""
    # Werkzeug counts the fields of multipart forms only.
    if request.mimetype == URLENCODED and request.get_data().count(b"&") > FORM_FIELDS:
        raise RequestEntityTooLarge
    return request.form


def hear_out() -> None:
    """Read the rest of a body that is too large: a client cut off while sending does not get our answer."""
    left = HEARD_BYTES
    while left > 0 and (read := request.environ["wsgi.input"].read(min(left, 2**16))):
        left -= len(read)


def are_short(form: Iterable[Field]) -> bool:
    """Return whether no field is too long as it was sent, before anything is normalized, parsed or scored.

    Counts characters, which have at most four bytes each.
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


# These reverse how the text next to them reads.
BIDI_CONTROLS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class OneLine:
    """Refuses line breaks, NUL and other control characters: no name has them, and they could end a header."""

    def __call__(self, _form: FlaskForm, field: Field) -> None:
        text = field.data or ""
        if any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in text) or BIDI_CONTROLS & set(text):
            raise ValidationError(_("Please leave out line breaks and other control characters."))


def western(text: str | None) -> str:
    """Return the text, cut to the length of a code field, with the digits of every script as 0 to 9."""
    return "".join(str(unicodedata.decimal(char, char)) for char in (text or "")[:CODE_MAX])


def code_field(
    label: str = _("Code from the email"),
    hint: str = _("The six-digit code from the email."),
    *,
    is_optional: bool = False,
) -> StringField:
    return StringField(
        label,
        filters=[strip, western],
        # Long enough for somebody who pastes the whole sentence: only its digits count.
        validators=[
            *([] if is_optional else [DataRequired(_("Please enter the six digits."))]),
            Length(max=CODE_MAX, message=_("This is too long.")),
        ],
        description=hint,
        render_kw={"autocomplete": "one-time-code", "inputmode": "numeric", "class": "digits", "spellcheck": "false"},
    )


def email_field(label: str = _("Email address"), hint: str = "") -> EmailField:
    return EmailField(
        label,
        filters=[strip],
        validators=[DataRequired(_("Please enter your email address."))],
        description=hint,
        render_kw={"autocomplete": "email", "autocapitalize": "none", "spellcheck": "false"},
    )


ADDRESS_ADVICE = _("Please check this address: it should look like name@example.com, in plain letters before the @.")


class WithAddress:
    """A form with a field `email`, parsed into `address` the same way everywhere."""

    address: email_addresses.Address

    def validate_email(self, field: EmailField) -> None:
        try:
            self.address = email_addresses.parse_address(field.data)
        except email_addresses.AddressInvalid as error:
            raise ValidationError(ADDRESS_ADVICE) from error


class WithNewAddress(WithAddress):
    """The same, for an address that is yet to be proved."""

    def validate_email(self, field: EmailField) -> None:
        super().validate_email(field)
        if self.address.is_read_as_another:
            raise ValidationError(ADDRESS_ADVICE)


def read_username(text: str) -> str:
    """Return a newly chosen username, as it is shown. Raises UsernameInvalid."""
    return usernames.choose(text, current_app.config["RESERVED_USERNAMES"])


def username_advice(error: usernames.UsernameInvalid) -> Any:
    return {
        "length": _("Please use at most %(max)d characters.", max=usernames.LONGEST),
        "characters": _("Please use only letters, digits, dots, hyphens and underscores."),
        "empty": _("Please use at least one letter or digit."),
        "reserved": _("This username is reserved. Please choose another."),
    }[error.reason]


class NameFields:
    """Username, full name and the fields of own/fields.py, with the same rules everywhere."""

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
        """The values of the fields in own/fields.py."""
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
    """Raises TypeError if a field in own/fields.py would replace something that one of these has."""
    for form in forms:
        ours = {*vars(form), *get_annotations(form), *OF_EVERY_FORM}
        for column in users.OWN_FIELDS:
            if column.name in ours:
                raise TypeError(f"own/fields.py: {column.name} must be a name that our forms do not have yet")


refuse_own_names(NameFields)
for _column in users.OWN_FIELDS:
    setattr(NameFields, _column.name, _own_field(_column))
