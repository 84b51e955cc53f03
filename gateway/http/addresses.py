"""Reads network addresses, for everything that compares or counts them.

One reading for all: an IPv4 address that is written as IPv6 (`::ffff:127.0.0.1`, which sockets that listen on both
report) is the IPv4 address, and a zone (`fe80::1%eth0`) is left out. Nothing here resolves a name.
"""

import ipaddress
from functools import lru_cache
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

COUNTED_IPV6_PREFIX: Final = 64
"""An IPv6 customer gets a network of this size at least, and can use any address in it."""

SITE_IPV6_PREFIX: Final = 48
"""A site, such as a company, may get an IPv6 network of this size: 65 536 of the networks that are counted."""

NO_ADDRESS: Final = "(no address)"
"""What clients without an address, such as those on a Unix socket, are counted as."""

_REMEMBERED: Final = 10_000
"""How many addresses each function remembers, because the same clients come again and again."""

_METADATA_ADDRESSES: Final = frozenset({"fd00:ec2::254", "100.100.100.200", "168.63.129.16"})
"""Where cloud providers serve machines' credentials, besides link-local addresses."""

_MAPPED_BITS: Final = 96
"""The length of `::ffff:0:0/96`, the IPv6 network that stands for all of IPv4."""


def parse_address(text: str) -> IPAddress | None:
    """Read an address, with or without brackets and zone; None if it is not one."""
    try:
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def parse_network(text: str) -> IPNetwork:
    """Read an address or a network such as 10.0.0.0/8.

    Raises:
        ValueError: it is neither, or it has bits set to the right of its prefix.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def parse_forwarded_address(entry: str) -> str | None:
    """Read an entry of X-Forwarded-For, which may have a port; None if it is not an address."""
    if entry.startswith("["):
        entry = entry.partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    address = parse_address(entry)
    return None if address is None else str(address)


@lru_cache(maxsize=_REMEMBERED)
def is_loopback(address: str) -> bool:
    """Whether only this machine can reach `address`. Of names, only localhost counts."""
    if address == "localhost":
        return True
    parsed = parse_address(address)
    return parsed is not None and parsed.is_loopback


@lru_cache(maxsize=_REMEMBERED)
def counted_address(address: str) -> str:
    """What limits count for a client at `address`: the IPv4 address, or the /64 network of an IPv6 address.

    Text that is not an address is counted as it is.
    """
    parsed = parse_address(address)
    if parsed is None:
        return address or NO_ADDRESS
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, COUNTED_IPV6_PREFIX), strict=False))
    return str(parsed)


@lru_cache(maxsize=_REMEMBERED)
def counted_site(address: str) -> str | None:
    """The /48 network of an IPv6 address, which limits count as well; None for any other address."""
    parsed = parse_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, SITE_IPV6_PREFIX), strict=False))
    return None


def refused_address(host: str, *, allows_private: bool, setting: str = "gumcp.allowPrivateAddresses") -> str | None:
    """Why the host does not connect to `host`, if it is an address that is refused; None for names and other addresses.

    `setting` is what allows private addresses. Link-local and metadata addresses are always refused.
    """
    address = parse_address(host)
    if address is None:
        return None
    if address.is_link_local or str(address) in _METADATA_ADDRESSES:
        return "a link-local or metadata address, which is refused always"
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        return "an address that no server can have"
    # Not is_private: addresses of carriers and overlay networks (100.64.0.0/10) are not public either.
    if not allows_private and not address.is_global:
        return f"a private address ({setting} is false)"
    return None
