"""What every request must be before a route sees it: addressed to this server, and not sent by another site's page.

A browser sends requests to any address that a page names, also to this machine's own, and with what the browser knows
of it. Three things show it: `Origin` or `Sec-Fetch-Site` name another origin; the body has one of the three media types
that a page may send without asking first; or, where the page's name was made to lead here, `Host` is not ours.
Programs (curl, clients, proxies) send no `Origin`, and are let through.

Source: Fetch standard, "CORS-safelisted request-header", "Origin header"; W3C, Fetch Metadata Request Headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from everloop.http.host_names import HostRule

SIMPLE_TYPES = frozenset({b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data"})
"""The media types that a page of any site may post without asking the server first."""
MOST_HEADERS = 100
_LOOKED_AT = frozenset({b"host", b"origin", b"content-type", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"})
_OWN_SITES = (b"same-origin", b"none")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is refused."""

    status: int
    message: str
    help: str | None = None


_TWICE = Refusal(400, "A header that may come once came twice.", "Send Host, Origin and Content-Type once.")
_STRANGE_HOST = Refusal(
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
    "This media type is not accepted, because any web page can send it without asking.",
    "Send the body as what it is: curl -H 'Content-Type: application/json' -d …",
)
_HEADERS = Refusal(431, f"The request has more than {MOST_HEADERS} headers.")


class RequestGuard:
    """Looks at a request's method and headers. Safe to use from several threads; holds no request."""

    def __init__(self, hosts: HostRule, origins: Collection[str] = ()) -> None:
        """Prepare.

        Args:
            origins: authorities (`ml.example.com`) under which pages of this server are seen, where something in front
                changes `Host`.
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
            if name in _LOOKED_AT:
                if name == b"host":
                    if host is not None:
                        return _STRANGE_HOST
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
        if not self.hosts.allows_value(host, local):
            return _STRANGE_HOST
        if origin is not None and not self._is_own(origin, host):
            return _CROSS_ORIGIN
        if site is not None and site.lower() not in _OWN_SITES:
            # A link on another site may lead here: what the browser shows then, that site cannot read.
            navigates = method == "GET" and origin is None and mode == b"navigate" and destination == b"document"
            if not navigates:
                return _CROSS_ORIGIN
        if method == "POST" and kind is not None and is_simple(kind) and origin is None and site != b"same-origin":
            # Nothing shows that it is a page of this server, and old browsers do not say which page it is.
            return _SIMPLE
        return None

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        scheme, _, authority = origin.lower().partition(b"://")
        return scheme in (b"http", b"https") and (authority == host.lower() or authority in self._origins)


def is_simple(kind: bytes) -> bool:
    """Whether a page of any site may post a body of this `Content-Type` without asking first."""
    # With a comma it is two types, of which the browser and a reader may choose different ones.
    return b"," in kind or kind.partition(b";")[0].strip().lower() in SIMPLE_TYPES
