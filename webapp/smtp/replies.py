"""Answers of the mail server: whose trouble each is, and whether to try again."""

from __future__ import annotations

import re
from typing import Literal

from webapp.smtp.protocol import AT_THE_MAIL, SmtpError

Meaning = Literal["server", "policy", "later", "never", "silence", "doubt"]

# What is said of the recipient: that there is none, that the mailbox is full (its quota, not ours), or that it takes
# mail from some alone (5.7.12x, 5.7.13x), which those tell of the sender.
RECIPIENTS = re.compile(r"(^|\s)[45]\.(1\.[1-6]|2\.\d+|7\.1[23]\d)\b")

# What is said of us, by servers that wait with it for the first recipient: of our sender, of our right to relay, of our
# login, of how much we may send.
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

# How many different domains a server refuses by its policy, and takes nothing meanwhile, until it is one for everybody.
EVERYBODY = 5


def meaning(error: SmtpError) -> Meaning:
    """Return whose trouble it is: the server's with any mail of ours, everybody's perhaps, or this mail's alone."""
    if error.phase not in AT_THE_MAIL or error.code == 421:
        return "server"
    # What is no answer to a mail that was handed over leaves it open whether it was taken.
    if error.code is None or (error.phase == "dot" and error.code < 400):
        return "doubt" if error.phase == "dot" else "silence"
    if not RECIPIENTS.search(error.reply):
        if OURS.search(error.reply):
            return "server"
        if POLICY.search(error.reply):
            return "policy"
    return "later" if error.code < 500 else "never"
