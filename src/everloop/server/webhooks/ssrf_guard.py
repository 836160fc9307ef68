"""HTTP requests to URLs that a client chose, protected against server-side request forgery (SSRF).

The host name is resolved once. All of its addresses must be public, or in a network that the operator allows. The
connection goes to the address that was checked, so a name that resolves differently the second time (DNS rebinding)
gains nothing. Redirects are not followed, and only the status of the response is used.
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
"""Not public according to IANA's registries of special addresses, whatever `ipaddress` of this Python version says."""
_ISATAP = (0x5EFE, 0x0200_5EFE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str) -> SplitResult:
    """Check and split a URL. Does not resolve its host name.

    Raises:
        UsageError: the URL is not http or https, has a user or password, or has no plain host name.
    """
    if len(url) > 2000 or not url.isascii() or any(character <= " " or character == "\\" for character in url):
        raise UsageError(
            "The URL is too long, or has characters that are not allowed.",
            help="Use at most 2,000 printable ASCII characters without spaces.",
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"'{url}' is not a URL: {error}.", help="Use http://NAME/… or https://NAME/….") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise UsageError(f"Messages cannot be sent to '{url}'.", help="Use http://NAME/… or https://NAME/….")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "The URL has a user or a password, which is not allowed.",
            help="Remove it. The receiver can check the signature of a message instead.",
        )
    return parts


def resolve(url: str, allowed: Sequence[str] = ()) -> tuple[SplitResult, str, int]:
    """Resolve a URL: its parts, an address that may be reached, and the port.

    Args:
        allowed: private networks that may be reached nevertheless.

    Raises:
        UsageError: at least one address of the host name may not be reached.
        UnavailableError: the host name does not resolve.
    """
    parts = check_url(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(f"The host name '{parts.hostname}' does not resolve.") from error
    addresses = [str(info[4][0]) for info in found]
    networks = [ipaddress.ip_network(network) for network in allowed]
    for address in addresses:
        if not _may_reach(address, networks):
            raise UsageError(
                f"'{parts.hostname}' resolves to {address}, which is not a public address.",
                help="The operator can allow private networks: everloop server --allow-webhook-network NETWORK",
            )
    return parts, addresses[0], port


def post(url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[str] = ()) -> int:
    """Send one message and return the status of the response. Takes ten seconds at most.

    Raises:
        UsageError: the address may not be reached.
        UnavailableError: there was no response in time, or it was not HTTP.
    """
    parts, address, port = resolve(url, allowed)
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    try:
        plain = socket.create_connection((address, port), timeout=CONNECT_S)
    except OSError as error:
        raise UnavailableError(f"{parts.hostname} cannot be reached: {error}.") from error
    # The socket's timeout applies to each read; this timer limits all of them together.
    timer = threading.Timer(TOTAL_S, _shut_down, (plain,))
    timer.daemon = True
    timer.start()
    try:
        plain.settimeout(CONNECT_S)
        secure = parts.scheme == "https"
        wire = ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) if secure else plain
        connection = http.client.HTTPConnection(str(parts.hostname), port)
        connection.sock = wire
        with wire:
            host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
            host_header = host if parts.port is None else f"{host}:{port}"
            connection.request("POST", target, body, {**headers, "Host": host_header, "Connection": "close"})
            return connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(f"{parts.hostname} did not respond: {error or type(error).__name__}.") from error
    finally:
        timer.cancel()
        plain.close()


def _shut_down(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)


def _may_reach(text: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if any(address in network for network in networks):
        return True
    return all(_is_public(each) for each in (address, *_embedded(address)))


def _is_public(address: Address) -> bool:
    special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL)
    return address.is_global and not special


def _embedded(address: Address) -> list[Address]:
    """Return the IPv4 addresses embedded in an IPv6 address, to which a router may translate it."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    inner: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in inner if each is not None]
