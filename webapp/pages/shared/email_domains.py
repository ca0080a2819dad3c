"""The most common email domains: where their email is read, and how they are mistyped."""

from __future__ import annotations

from flask import current_app, url_for
from flask_babel import gettext

WEBMAIL = {
    ("gmail.com", "googlemail.com"): ("Gmail", "https://mail.google.com/"),
    ("outlook.com", "hotmail.com", "live.com", "msn.com", "outlook.co.th", "hotmail.co.th"): (
        "Outlook",
        "https://outlook.live.com/mail/",
    ),
    ("yahoo.com", "ymail.com", "yahoo.co.uk", "yahoo.co.th", "yahoo.de", "yahoo.fr", "yahoo.co.jp"): (
        "Yahoo Mail",
        "https://mail.yahoo.com/",
    ),
    ("icloud.com", "me.com", "mac.com"): ("iCloud Mail", "https://www.icloud.com/mail"),
    ("proton.me", "protonmail.com", "pm.me"): ("Proton Mail", "https://mail.proton.me/"),
    ("gmx.net", "gmx.de", "gmx.com", "gmx.at", "gmx.ch"): ("GMX", "https://www.gmx.net/"),
    ("web.de",): ("WEB.DE", "https://web.de/"),
    ("aol.com",): ("AOL Mail", "https://mail.aol.com/"),
    ("fastmail.com", "fastmail.fm"): ("Fastmail", "https://app.fastmail.com/"),
    ("zoho.com", "zohomail.com"): ("Zoho Mail", "https://mail.zoho.com/"),
    ("naver.com",): ("Naver", "https://mail.naver.com/"),
    ("qq.com",): ("QQ Mail", "https://mail.qq.com/"),
}
BY_DOMAIN = {domain: webmail for domains, webmail in WEBMAIL.items() for domain in domains}

# Typos are recognized by these; shorter names are one slip away from too many others.
COMMON = [domain for domain in BY_DOMAIN if len(domain) > 8]
# Real domains that are one slip away from a common one.
REAL = ["mail.com", "email.com", "email.de"]


def webmail(address: str) -> tuple[str, str] | None:
    """Return the name and URL of this address's webmail."""
    if current_app.config["APP_ENV"] == "development":
        return gettext("the mailbox"), url_for("mailbox.show")
    return BY_DOMAIN.get(_domain(address))


def suggestion(address: str) -> str | None:
    """Return the address that was probably meant, if its domain is one slip away from a common one."""
    domain = _domain(address)
    if domain in BY_DOMAIN or domain in REAL:
        return None
    meant = next((common for common in COMMON if is_one_slip_away(domain, common)), None)
    return f"{address.rpartition('@')[0]}@{meant}" if meant else None


def is_one_slip_away(typed: str, meant: str) -> bool:
    """Return whether one letter is missing, extra or wrong, or two neighbors are swapped."""
    if typed == meant:
        return False
    start = next((i for i, (a, b) in enumerate(zip(typed, meant, strict=False)) if a != b), min(len(typed), len(meant)))
    rest, other = typed[start:], meant[start:]
    is_swapped = rest[:2] == other[1::-1] and rest[2:] == other[2:] and len(rest) > 1
    return rest[1:] == other[1:] or rest[1:] == other or rest == other[1:] or is_swapped


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()
