"""Email addresses as they are typed, and the keys that all spellings of one share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from email_validator import EmailNotValidError, validate_email

from webapp.accounts.identifiers import pasted, usernames

EMAIL_MAX = 254

# Some mail servers pass ann%example.net@example.com and example.net!ann@example.com on to ann@example.net, and decode
# =?…?= as in headers. So Ann would prove an address that isn't hers.
READ_AS_ANOTHER = re.compile(r"[%!]|=\?")


class AddressInvalid(ValueError):
    """Not an address that we can send to; its text says why."""


@dataclass(frozen=True)
class Address:
    """`mailed` is what we send to; `key` is the same for all spellings of one account."""

    mailed: str
    key: str

    @property
    def is_read_as_another(self) -> bool:
        """Whether some mail servers deliver it elsewhere: nobody may prove it, but whoever has it keeps it."""
        return READ_AS_ANOTHER.search(self.key.rpartition("@")[0]) is not None


def parse_address(text: str) -> Address:
    """Raises AddressInvalid."""
    text = pasted.address(text)
    if len(text) > EMAIL_MAX:
        # Before normalizing it, which takes seconds for a long run of accents.
        raise AddressInvalid("too long")
    try:
        # Reserved domains such as example.test are accepted: no email arrives there, and trials use them.
        valid = validate_email(
            text, allow_smtputf8=False, check_deliverability=False, test_environment=True, strict=True
        )
    except EmailNotValidError as error:
        raise AddressInvalid(str(error)) from error
    # Lower-cased, not case-folded: folding would merge mailboxes that differ.
    return Address(mailed=valid.ascii_email or valid.normalized, key=f"{valid.local_part.lower()}@{valid.ascii_domain}")


def address_key(typed: str) -> str:
    """Return an address's key, even if we would not accept the address today."""
    try:
        return parse_address(typed).key
    except AddressInvalid:
        local, _at, domain = typed.rpartition("@")
        return f"{local.lower()}@{domain.lower()}"


def identifier_key(typed: str) -> str:
    """Return the key that all ways to type a username or an address share."""
    try:
        return parse_address(typed).key
    except AddressInvalid:
        return address_key(typed) if "@" in typed else usernames.key(typed)
