"""Mailboxes, `Name <address>`, as people write them, in headers and on the wire."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from email.header import Header
from email.utils import formataddr
from functools import lru_cache

import idna

Mailbox = str | tuple[str, str]

ON_THE_WIRE = re.compile(r"[!-+\--;=?A-~]+@[A-Za-z0-9._:\[\]-]+")
NAMED = re.compile(r"\s*(.*?)\s*<([^<>]*)>\s*")
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@lru_cache
def mailbox(given: Mailbox, name: str = "") -> str:
    """Return name and address for a header, in ASCII; `name` is used if none is given. Raises ValueError."""
    its_name, address = _split(given)
    name = its_name or name
    if name.isascii():
        return formataddr((name, address))
    return f"{Header(name, 'utf-8').encode(linesep='')} <{address}>"


@lru_cache
def bare(given: Mailbox) -> str:
    """Return the address alone, its domain in ASCII. Raises ValueError."""
    return _split(given)[1]


def domain(given: Mailbox) -> str:
    return bare(given).rpartition("@")[2]


def in_ascii(host: str) -> str:
    """Return a host's name in punycode. Raises ValueError."""
    return host if host.isascii() else idna.encode(host, uts46=True).decode()


def literal(host: str) -> str:
    """Return a host as SMTP writes it, an IP address in brackets. Raises ValueError."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"
    return in_ascii(host)


def _split(given: Mailbox) -> tuple[str, str]:
    # Not with the email package: it takes the comma in an unquoted name for the end of an address.
    if isinstance(given, tuple):
        name, address = given
    else:
        found = NAMED.fullmatch(given)
        name, address = found.groups() if found else ("", given.strip())
        if quoted := QUOTED.fullmatch(name):
            name = re.sub(r"\\(.)", r"\1", quoted[1])
    local, _, host = address.rpartition("@")
    address = f"{local}@{in_ascii(host)}"
    if not ON_THE_WIRE.fullmatch(address):
        raise ValueError(f"{given!r} is not an address that mail servers accept")
    return name, address
