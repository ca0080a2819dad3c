"""Addresses as people paste them, with what stood around them."""

from __future__ import annotations

import re

from webapp.accounts.identifiers import usernames

# No address is longer than 254 characters; the rest is for what is around it.
LONGEST = 512

# As it stands in a mail: Ann Lee <ann@example.com>.
NAMED = re.compile(r"[^<>\x00-\x1f]*<([^<>]+)>")
QUOTED = re.compile(r"\((.+)\)|\[(.+)\]|\"(.+)\"|'(.+)'")
AT_SIGNS = str.maketrans("\N{FULLWIDTH COMMERCIAL AT}\N{SMALL COMMERCIAL AT}", "@@")
AROUND = re.compile(r"^[\s,;]+|[\s,;.]+$")


def address(text: str) -> str:
    """Return the address alone. What is longer than any address with a name comes back as it is, and is none."""
    if len(text) > LONGEST:
        return text
    bare = AROUND.sub("", usernames.INVISIBLE.sub("", text).translate(AT_SIGNS))
    if found := NAMED.fullmatch(bare) or QUOTED.fullmatch(bare):
        bare = next(part for part in found.groups() if part).strip()
    if bare[:7].lower() == "mailto:":
        # A link may say what the mail is about.
        bare = bare[7:].partition("?")[0]
    return AROUND.sub("", bare)
