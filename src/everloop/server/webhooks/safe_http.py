"""Requests to addresses that a client chose, made so that they reach nothing they should not.

The name is resolved here, once; every address that it has must be a public one (or lie in a network that the operator
allows), and the connection goes to the very address that was looked at, so that a name which answers differently the
second time gains nothing. Redirects are not followed and of the answer only the status is used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from everloop.errors import UnavailableError, UsageError

CONNECT_S = 5.0
TOTAL_S = 10.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SPECIAL = tuple(
    ipaddress.ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "3fff::/20")
)
"""Not public by IANA's registries of special addresses, whatever the standard library of this Python says."""
_ISATAP = (0x5EFE, 0x0200_5EFE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str) -> SplitResult:
    """The parts of a URL that may be asked at all; says nothing yet about where its name leads.

    Raises:
        UsageError: not http or https, with a user or password, or without a plain name.
    """
    if len(url) > 2000 or not url.isascii() or any(character <= " " or character == "\\" for character in url):
        raise UsageError(
            "This is no URL to send to.", help="Use printable ASCII without spaces, at most 2,000 characters."
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"'{url}' is no URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UsageError(f"'{url}' cannot be sent to.", help="Use http://NAME/… or https://NAME/….")
    if parts.username is not None or parts.password is not None:
        raise UsageError("A URL with a user or a password is not taken.", help="Messages are signed instead.")
    return parts


def resolve(url: str, allowed: Sequence[str] = ()) -> tuple[SplitResult, str, int]:
    """Where a URL leads: its parts, one address that may be reached, and the port.

    Args:
        allowed: private networks that may be reached all the same.

    Raises:
        UsageError: it leads, also, to an address that may not be reached.
        UnavailableError: the name does not resolve.
    """
    parts = check_url(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"The name '{parts.hostname}' does not resolve.") from error
    addresses = [str(one[4][0]) for one in found]
    networks = [ipaddress.ip_network(network) for network in allowed]
    for address in addresses:
        if not _may_reach(address, networks):
            raise UsageError(
                f"'{parts.hostname}' leads to {address}, which is not a public address.",
                help="The operator may allow a network with --allow-webhook-network.",
            )
    return parts, addresses[0], port


def post(url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[str] = ()) -> int:
    """Send one message and return the status that came back. Takes ten seconds at most.

    Raises:
        UsageError: the address may not be reached.
        UnavailableError: it did not answer in time, or not in HTTP.
    """
    parts, address, port = resolve(url, allowed)
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    try:
        plain = socket.create_connection((address, port), timeout=CONNECT_S)
    except OSError as error:
        raise UnavailableError(f"{parts.hostname} cannot be reached: {error}.") from error
    # The socket's own timeout is for each read; this one is for all of them.
    cut = threading.Timer(TOTAL_S, _cut, (plain,))
    cut.daemon = True
    cut.start()
    try:
        plain.settimeout(CONNECT_S)
        secure = parts.scheme == "https"
        wire = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) if secure else plain
        connection = http.client.HTTPConnection(str(parts.hostname), port)
        connection.sock = wire
        with wire:
            host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
            named = host if parts.port is None else f"{host}:{port}"
            connection.request("POST", target, body, {**headers, "Host": named, "Connection": "close"})
            return connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(f"{parts.hostname} did not answer: {error or type(error).__name__}.") from error
    finally:
        cut.cancel()
        plain.close()


def _cut(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)


def _may_reach(text: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if any(address in network for network in networks):
        return True
    return all(_is_public(one) for one in (address, *_within(address)))


def _is_public(address: Address) -> bool:
    special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL)
    return address.is_global and not special


def _within(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address stands for, where a router would translate it."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inner if one is not None]
