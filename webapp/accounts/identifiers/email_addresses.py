"""Email addresses as they are typed, and the keys that make two spellings one."""

from __future__ import annotations

from dataclasses import dataclass

from email_validator import EmailNotValidError, validate_email

from webapp.accounts.identifiers import pasted, usernames

EMAIL_MAX = 254


class AddressInvalid(ValueError):
    """Not an address that we can mail; its text says why."""


@dataclass(frozen=True)
class Address:
    """`mailed` is what mail is sent to, `key` what makes two spellings one account."""

    mailed: str
    key: str


def parse_address(text: str) -> Address:
    """Raises AddressInvalid."""
    text = pasted.address(text)
    if len(text) > EMAIL_MAX:
        # Before it is normalized, which takes seconds for a long row of accents.
        raise AddressInvalid("too long")
    try:
        # Reserved names such as example.test are let through: nobody's mail arrives there, and trials use them.
        valid = validate_email(
            text, allow_smtputf8=False, check_deliverability=False, test_environment=True, strict=True
        )
    except EmailNotValidError as error:
        raise AddressInvalid(str(error)) from error
    # Lower-cased, not case-folded: folding would merge mailboxes that differ.
    return Address(mailed=valid.ascii_email or valid.normalized, key=f"{valid.local_part.lower()}@{valid.ascii_domain}")


def address_key(typed: str) -> str:
    """Return an address's key, also of one that we would not accept today."""
    try:
        return parse_address(typed).key
    except AddressInvalid:
        local, _at, domain = typed.rpartition("@")
        return f"{local.lower()}@{domain.lower()}"


def identifier_key(typed: str) -> str:
    """Return what two ways to type the same username or address have in common."""
    try:
        return parse_address(typed).key
    except AddressInvalid:
        return address_key(typed) if "@" in typed else usernames.key(typed)
