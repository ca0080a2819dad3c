"""Network addresses: as proxies write them, and which of them count as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# No address is longer, with a zone, in brackets and with a port.
LONGEST = 80

# 203.0.113.7:51234, [2001:db8::1]:443, [2001:db8::1], or the address alone; fe80::1%eth0 has a zone.
WRITTEN = re.compile(
    r"(?: (?P<v4> [0-9.]+ ) | \[ (?P<v6> [^\[\]%]+ ) (?: % [^\[\]]* )? \] ) (?: : [0-9]{1,5} )?"
    r" | (?P<bare> [^\[\]%]+ ) (?: % .* )?",
    re.VERBOSE,
)

# Of an IPv6 address: the networks that it is of, and how many times a limit each of them has. Providers hand the first
# out whole, the second to homes and the third to sites, whose owners have all that is in it.
NETWORKS = ((64, 1), (56, 4), (48, 16))

# A translator before us writes the IPv4 address that it got into one of these.
NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Network:
    """Who counts as one: `counted` names it, and the wider networks that it is of, each with its share of a limit."""

    counted: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return self.counted[0][0]


def read(text: str | None) -> IPv4Address | IPv6Address | None:
    """Return the address in the text, without port and zone; nothing when it is none."""
    found = WRITTEN.fullmatch(text.strip(" \t\"'")) if text and len(text) <= LONGEST else None
    try:
        address = ip_address(found["v4"] or found["v6"] or found["bare"]) if found else None
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def of(text: str | None) -> Network:
    """Return who this address counts with."""
    address = read(text)
    if address is None:
        # Whoever speaks through a socket of this machine has none.
        return Network((("local", 1),))
    if isinstance(address, IPv6Address):
        inner = _ipv4_in(address)
        if inner is None:
            return Network(tuple((str(ip_network((address, width), strict=False)), share) for width, share in NETWORKS))
        address = inner
    return Network(((str(address), 1),))


def _ipv4_in(address: IPv6Address) -> IPv4Address | None:
    """Return whose IPv6 address this is, if a tunnel or a translator made it of an IPv4 address."""
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)
