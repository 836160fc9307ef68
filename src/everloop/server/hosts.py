"""Under which names a server may be addressed, and from which pages it may be changed.

A page of another site can make a browser send requests here, and by DNS rebinding it can make its own name lead
here. The first shows in `Origin` or `Sec-Fetch-Site`, the second in `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

Headers = Iterable[tuple[bytes, bytes]]


def host_name(value: str) -> str | None:
    """The name in a `Host` header, in small letters and without port or brackets; None if it is none."""
    if value.startswith("["):
        name, closed, port = value[1:].partition("]")
        if not closed or (port and not _is_port(port)):
            return None
        try:
            return str(ipaddress.IPv6Address(name))
        except ValueError:
            return None
    name, colon, port = value.partition(":")
    if (colon and not _is_port(f":{port}")) or not name:
        return None
    if not all(character.isascii() and (character.isalnum() or character in "-._") for character in name):
        return None
    return name.lower().rstrip(".")


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isascii() and (text[1:].isdecimal() or text == ":") and len(text) < 7


class HostRule:
    """Which `Host` is this server's."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._names = LOOPBACK | {name.lower() for name in allowed if not name.startswith("*.")}
        self._endings = tuple(name[1:].lower() for name in allowed if name.startswith("*."))

    def allows(self, headers: Headers, local: str | None) -> bool:
        """Whether the one `Host` header names this server.

        Args:
            local: the address at which the connection arrived. A name can be made to lead anywhere, a number
                cannot, so this number itself is always right.
        """
        values = [value for name, value in headers if name == b"host"]
        if len(values) != 1:
            return False
        name = host_name(values[0].decode("latin-1"))
        return name is not None and (
            name in self._names or name == local or bool(self._endings and name.endswith(self._endings))
        )


def is_cross_origin(method: str, headers: Headers) -> bool:
    """Whether a page of another origin asks for a change."""
    if method in SAFE_METHODS:
        return False
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (b"origin", b"sec-fetch-site", b"host"):
            if name in found:
                return True
            found[name] = value.lower()
    if found.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
        return True
    origin = found.get(b"origin")
    if origin is None:
        return False
    scheme, _, authority = origin.partition(b"://")
    return scheme not in (b"http", b"https") or authority != found.get(b"host", b"")
