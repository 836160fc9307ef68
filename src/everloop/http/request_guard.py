"""Checks every request before a route sees it: it must be addressed to this server and not come from another site.

A browser lets any page send requests to any address, including this machine, along with the cookies that it has for it.
Three things give such requests away: `Origin` or `Sec-Fetch-Site` name another origin; the body has one of the three
media types that a page may send without a preflight; or, if the page's domain was pointed at this machine, `Host` is
not one of this server's names. Programs (curl, clients, proxies) send no `Origin` and pass.

Source: Fetch standard, "CORS-safelisted request-header", "Origin header"; W3C, Fetch Metadata Request Headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from everloop.http.host_names import HostRule

SIMPLE_TYPES = frozenset({b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"})
"""The media types that a page of any site may post without a preflight request."""
MOST_HEADERS = 100
_CHECKED = frozenset({b"host", b"origin", b"content-type", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"})
_OWN_SITES = (b"same-origin", b"none")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused."""

    status: int
    message: str
    help: str | None = None


_TWICE = Refusal(400, "A header that may be sent once was sent twice.", "Send Host, Origin and Content-Type once.")
_WRONG_HOST = Refusal(
    421,
    "This server does not answer to that host name.",
    "The operator may add names with --allowed-host, or with the environment variable EVERLOOP_ALLOWED_HOSTS.",
)
_NO_HOST = Refusal(421, "The request names no host.", "Send a Host header.")
_CROSS_ORIGIN = Refusal(
    403,
    "A page of another origin can neither read nor change anything here.",
    "Send the request from a program, or from a page of this server.",
)
_SIMPLE = Refusal(
    415,
    "This media type is not accepted, because any web page can send it without a preflight request.",
    "Send the real content type: curl -H 'Content-Type: application/json' -d …",
)
_HEADERS = Refusal(431, f"The request has more than {MOST_HEADERS} headers.")


class RequestGuard:
    """Checks a request's method and headers. Thread-safe and stateless."""

    def __init__(self, hosts: HostRule, origins: Collection[str] = ()) -> None:
        """Prepare.

        Args:
            origins: domains (`ml.example.com`) under which browsers see this server's pages, if a proxy changes `Host`.
        """
        self.hosts = hosts
        self._origins = hosts.origins | {origin.lower().encode() for origin in origins}

    def refusal(self, method: str, headers: Sequence[tuple[bytes, bytes]], local: str | None) -> Refusal | None:
        """Why this request is refused; None: it may pass.

        Args:
            headers: names in lower case.
            local: the address at which the connection arrived.
        """
        host = origin = site = mode = destination = kind = None
        for name, value in headers:
            if name in _CHECKED:
                if name == b"host":
                    if host is not None:
                        return _WRONG_HOST
                    host = value
                elif name == b"content-type":
                    if kind is not None:
                        return _TWICE
                    kind = value
                elif name == b"origin":
                    if origin is not None:
                        return _CROSS_ORIGIN
                    origin = value
                elif name == b"sec-fetch-site":
                    if site is not None:
                        return _CROSS_ORIGIN
                    site = value
                elif name == b"sec-fetch-mode":
                    mode = value
                else:
                    destination = value
        if len(headers) > MOST_HEADERS:
            return _HEADERS
        if host is None:
            return _NO_HOST
        if not self.hosts.allows(host, local):
            return _WRONG_HOST
        if origin is not None and not self._is_own(origin, host):
            return _CROSS_ORIGIN
        if site is not None and site.lower() not in _OWN_SITES:
            # A link on another site may lead here; that site cannot read what the browser then shows.
            navigates = method == "GET" and origin is None and mode == b"navigate" and destination == b"document"
            if not navigates:
                return _CROSS_ORIGIN
        if method == "POST" and kind is not None and is_simple(kind) and origin is None and site != b"same-origin":
            # Nothing proves that a page of this server sent it; old browsers do not send the page's origin.
            return _SIMPLE
        return None

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        scheme, _, authority = origin.lower().partition(b"://")
        return scheme in (b"http", b"https") and (authority == host.lower() or authority in self._origins)


def is_simple(kind: bytes) -> bool:
    """Whether a page of any site may post a body of this `Content-Type` without a preflight request."""
    # A comma separates two types, and browser and server may disagree about which one counts.
    return b"," in kind or kind.partition(b";")[0].strip().lower() in SIMPLE_TYPES
