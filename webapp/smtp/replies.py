"""Answers of the mail server: whose problem each is, and whether to retry."""

from __future__ import annotations

import re
from typing import Literal

from webapp.smtp.protocol import AT_THE_MAIL, SmtpError

Meaning = Literal["server", "policy", "later", "never", "silence", "doubt"]

# Answers about the recipient: there is none, the mailbox is full (its quota, not ours), or it takes email only from
# certain senders (5.7.12x and 5.7.13x, which are worded as if about the sender).
RECIPIENTS = re.compile(r"(^|\s)[45]\.(1\.[1-6]|2\.\d+|7\.1[23]\d)\b")

# Answers about us, from servers that wait for the first recipient to give them: about our sender, our right to relay,
# our login, how much we may send.
OURS = re.compile(
    r"(^|\s)([45]\.1\.[78]|[45]\.1\.0\b.*\bsender|5\.4\.5)\b"
    r"|sender verif\w+ fail|sender (address|domain)\b.{0,60}\b(rejected|refused|not (exist|found|owned|allowed))"
    r"|\bsend as this\b"
    r"|\brelay(ing)?\b.{0,40}\b(denied|prohibited|not (permitted|allowed))"
    r"|\b(unable|not \w+|cannot|can't|don't|do not|does not) (to )?relay"
    r"|authentication (is )?required"
    r"|(daily|hourly|message|sending)\b.{0,40}quota exceeded|sending (limit|rate|quota)|throttl",
    re.IGNORECASE | re.DOTALL,
)

POLICY = re.compile(r"(^|\s)[45]\.7\.\d+\b")


def meaning(error: SmtpError) -> Meaning:
    """Return whose problem it is: the server's with any email of ours, perhaps everyone's, or this email's alone."""
    if error.phase not in AT_THE_MAIL or error.code == 421:
        return "server"
    # Without a valid answer to an email that was handed over, the server may have taken it.
    if error.code is None or (error.phase == "dot" and error.code < 400):
        return "doubt" if error.phase == "dot" else "silence"
    if not RECIPIENTS.search(error.reply):
        if OURS.search(error.reply):
            return "server"
        if POLICY.search(error.reply):
            return "policy"
    return "later" if error.code < 500 else "never"
