"""What an answer of the mail server means."""

from __future__ import annotations

import re
from typing import Literal

from webapp.phases import SmtpError

# What the recipient's server, or the content, may have a part in.
AT_THE_MAIL = {"recipient", "data", "dot"}

# Policy (x.7.x), a provider's daily limit (5.4.5), and what old servers say instead of a code.
POLICY = re.compile(
    r"(^|\s)([45]\.7\.\d+|5\.4\.5)\b|relay(ing)? (access )?denied|quota exceeded|sending (limit|rate)", re.IGNORECASE
)

# How often a mail tries a server that takes it and does not say so: each try may be a duplicate.
IN_DOUBT_DELAYS = [15.0, 30.0, *[45.0] * 8]
IN_DOUBT_DELAY_MAX = 1800.0


def meaning(error: SmtpError) -> Literal["server", "later", "never"]:
    """Return whose trouble it is: the mail server's with any mail, or this mail's, for now or for good."""
    if error.phase not in AT_THE_MAIL or error.code is None or error.code == 421 or POLICY.search(error.reply):
        return "server"
    return "later" if error.code < 500 else "never"


def in_doubt_delay(tries: int) -> float:
    return IN_DOUBT_DELAYS[tries] if tries < len(IN_DOUBT_DELAYS) else IN_DOUBT_DELAY_MAX
