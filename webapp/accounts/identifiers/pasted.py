"""Addresses as people paste them, with text around them."""

from __future__ import annotations

import re

from webapp.accounts.identifiers import usernames

# An address has at most 254 characters; the rest is for the text around it.
LONGEST = 512

# As in an email's header: Ann Lee <ann@example.com>.
NAMED = re.compile(r"[^<>\x00-\x1f]*<([^<>]+)>")
QUOTED = re.compile(r"\((.+)\)|\[(.+)\]|\"(.+)\"|'(.+)'")
AT_SIGNS = str.maketrans("\N{FULLWIDTH COMMERCIAL AT}\N{SMALL COMMERCIAL AT}", "@@")
AROUND = re.compile(r"^[\s,;]+|[\s,;.]+$")


def address(text: str) -> str:
    """Return the bare address. A text longer than LONGEST is returned unchanged: it cannot be one."""
    if len(text) > LONGEST:
        return text
    bare = AROUND.sub("", usernames.INVISIBLE.sub("", text).translate(AT_SIGNS))
    if found := NAMED.fullmatch(bare) or QUOTED.fullmatch(bare):
        bare = next(part for part in found.groups() if part).strip()
    if bare[:7].lower() == "mailto:":
        # A mailto: link may have a subject.
        bare = bare[7:].partition("?")[0]
    return AROUND.sub("", bare)
