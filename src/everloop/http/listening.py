"""Sockets to listen on: binding them, their URLs, and who can reach them."""

from __future__ import annotations

import errno
import socket
from typing import Any

from everloop.errors import ConflictError, UsageError
from everloop.http.host_names import is_loopback


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a bound socket that does not listen yet.

    Args:
        port: 0 to 65535; 0 takes a free one.
        shared: other processes may bind the same port in the same way.

    Raises:
        ConflictError: the port is in use.
        UsageError: this machine cannot bind the address.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port.", help="Use a number from 0 to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"Cannot listen on '{host}:{port}': {error}.", help="Use an address of this machine."
        ) from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        if shared:
            # Bound without sharing first, to notice a port that others share.
            taken = bound.getsockname()
            bound.close()
            bound = socket.socket(family, kind)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(taken)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"Port {port} of {host} is in use.", help="Choose another with --port, or 0 for any."
            ) from error
        raise UsageError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL by which this machine reaches a bound socket."""
    address: Any = bound.getsockname()
    host, port = address[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_public(bound: socket.socket) -> bool:
    """Whether other machines can reach the socket."""
    return not is_loopback(bound.getsockname()[0])
