"""Network addresses: how proxies write them, and which count as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# No address is longer, even with a zone, brackets and a port.
LONGEST = 80

# 203.0.113.7:51234, [2001:db8::1]:443, [2001:db8::1], or the address alone; fe80::1%eth0 has a zone.
WRITTEN = re.compile(
    r"(?: (?P<v4> [0-9.]+ ) | \[ (?P<v6> [^\[\]%]+ ) (?: % [^\[\]]* )? \] ) (?: : [0-9]{1,5} )?"
    r" | (?P<bare> [^\[\]%]+ ) (?: % .* )?",
    re.VERBOSE,
)

# The networks of an IPv6 address, and how many times the limit each of them gets. Providers assign the first whole, the
# second to homes and the third to sites; the owner has every address in it.
NETWORKS = ((64, 1), (56, 4), (48, 16))

# A translator in front of us embeds the client's IPv4 address in one of these.
NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Network:
    """Addresses that count as one: `counted` names the network and wider ones, each with its multiple of a limit."""

    counted: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return self.counted[0][0]


def read(text: str | None) -> IPv4Address | IPv6Address | None:
    """Return the address in the text, without port and zone, or None if it is not an address."""
    found = WRITTEN.fullmatch(text.strip(" \t\"'")) if text and len(text) <= LONGEST else None
    try:
        address = ip_address(found["v4"] or found["v6"] or found["bare"]) if found else None
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def of(text: str | None) -> Network:
    """Return the network that this address counts as."""
    address = read(text)
    if address is None:
        # A client on a Unix socket has no address.
        return Network((("local", 1),))
    if isinstance(address, IPv6Address):
        inner = _ipv4_in(address)
        if inner is None:
            return Network(tuple((str(ip_network((address, width), strict=False)), share) for width, share in NETWORKS))
        address = inner
    return Network(((str(address), 1),))


def _ipv4_in(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address from which a tunnel or a translator made this one, if any."""
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo[1] if address.teredo else None)
