"""Finds the client address of a request that may have passed through trusted proxies."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from everloop.errors import UsageError

_MOST_HOPS = 20

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=64)
def read_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse the addresses and networks of proxies.

    Raises:
        UsageError: a text is not an address or a network.
    """
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in texts)
    except ValueError as error:
        raise UsageError(
            f"trusted_proxies (--trusted-proxy) has a value that is not an address or a network: {error}.",
            help="Write it as '10.0.0.5' or '10.0.0.0/8'.",
        ) from error


def client_address(scope: Mapping[str, Any], trusted: Sequence[Network]) -> str:
    """Return the address of a request's client.

    `X-Forwarded-For` is only read if the connection comes from a trusted proxy. It is read backwards, as the nearest
    proxy appends to its end, up to the first address that is not a trusted proxy. Entries before that one may have been
    forged by the client.
    """
    client = scope.get("client")
    address = str(client[0]) if client else ""
    if not trusted or not _is_among(address, trusted):
        return address
    lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    hops = b",".join(lines).decode("latin-1").rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]
    for hop in reversed(hops):
        found = _address(hop.strip())
        if found is None:
            return address
        address = found
        if not _is_among(address, trusted):
            return address
    return address


def _is_among(address: str, networks: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def _address(text: str) -> str | None:
    """Return the address of an entry, which may have a port: `192.0.2.1:4711`, `[2001:db8::1]:4711`."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
