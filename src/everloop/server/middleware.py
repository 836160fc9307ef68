"""ASGI middleware that checks every request to the control plane before a route handles it.

The checks run in this order: the request guard that all HTTP processes share (`http/request_guard.py`: 421, 403,
415), the credentials (401, 429, 503), and the length of the body (413, 408). Every response gets the security headers
and a line in the access log (logger `everloop.access`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, MutableMapping
from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from everloop.http.body_limits import BodyWatch, declared_length
from everloop.http.host_names import HostRule
from everloop.http.request_guard import RequestGuard
from everloop.server.access.authentication import Authenticator, CredentialsError
from everloop.server.access.client_address import client_address, read_networks
from everloop.server.error_responses import SECURITY_HEADERS, send_refusal
from everloop.server.request_context import AUTH, BODY, CALLER, PRINCIPAL, STORE

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Message, Receive, Scope, Send

    from everloop.server.event_stream import EventStream
    from everloop.server.gateway.endpoint_addresses import EndpointAddresses
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store

_access = logging.getLogger("everloop.access")
_LOGIN = ((b"www-authenticate", b'Basic realm="everloop", charset="UTF-8"'),)


class AccessMiddleware:
    """Checks host, credentials and body of each request, and logs each response."""

    def __init__(
        self,
        app: ASGIApp,
        store: Store,
        options: ServerOptions,
        authenticator: Authenticator | None,
        open_paths: Collection[str],
        endpoints: EndpointAddresses | None = None,
        events: EventStream | None = None,
    ) -> None:
        """Wrap an app.

        Args:
            authenticator: checks credentials; None: no login is needed.
            open_paths: paths that need no login.
            endpoints: the endpoints behind this server. An endpoint's own tokens open the paths below its name.
            events: the stream of events, which the server ends before it stops.
        """
        self.app = app
        self.store = store
        self.options = options
        self.authenticator = authenticator
        self.open_paths = open_paths
        self.endpoints = endpoints
        self.events = events
        public_host = urlsplit(options.public_url).netloc if options.public_url else ""
        self.guard = RequestGuard(HostRule(options.allowed_hosts), (public_host,) if public_host else ())
        self._proxies = read_networks(options.trusted_proxies)
        self._store_of_actor = lru_cache(maxsize=1024)(store.as_actor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http":
            if str(scope["type"]) == "lifespan":
                await self.app(scope, receive, send)
            # There are no web sockets here. uvicorn answers a handshake that the app does not accept with 403.
            return
        request_scope = cast("MutableMapping[str, Any]", scope)
        response = _LoggedResponse(send)
        started = perf_counter()
        try:
            if await self._is_admitted(request_scope, response.send):
                watch = BodyWatch(receive, self.options, declared_length(request_scope["headers"]))
                request_scope[BODY] = watch
                await self.app(scope, watch.receive, response.send)
        finally:
            if _access.isEnabledFor(logging.INFO):
                _log(request_scope, response, perf_counter() - started)

    async def _is_admitted(self, scope: MutableMapping[str, Any], send: Send) -> bool:
        path, server = scope["path"], scope.get("server")
        refusal = self.guard.refusal(scope["method"], scope["headers"], server[0] if server else None)
        scope[AUTH] = self.authenticator is not None
        scope.setdefault("state", {})[STORE] = self.store
        # Only clients with a login learn which media types are accepted.
        if (refusal is None or refusal.status == 415) and not await self._has_access(scope, send):
            return False
        if refusal is not None:
            await send_refusal(send, path, refusal.status, refusal.message, help=refusal.help)
        return refusal is None

    async def _has_access(self, scope: MutableMapping[str, Any], send: Send) -> bool:
        """Whether the request has valid credentials or needs none. Each route checks the role itself."""
        if self.authenticator is None:
            return True
        path = scope["path"]
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        try:
            if len(given) > 1:
                raise CredentialsError(401, "The request has more than one Authorization header; send one.")
            if (
                given
                and self.endpoints is not None
                and (name := await self.endpoints.caller(scope, given[0])) is not None
            ):
                scope[CALLER] = name
                return True
            address = client_address(scope, self._proxies)
            principal = await self.authenticator.identify(given[0] if given else None, address)
            if principal is None and path not in self.open_paths:
                raise CredentialsError(
                    401, "This needs a login: send a token or a password in the Authorization header."
                )
        except CredentialsError as error:
            more = _LOGIN if error.status == 401 else ((b"retry-after", str(error.wait_s).encode()),)
            await send_refusal(send, path, error.status, error.message, headers=more)
            return False
        if principal is not None:
            scope[PRINCIPAL] = principal
            scope["state"][STORE] = self._store_of_actor(principal.actor)
        return True


class _LoggedResponse:
    """Adds the security headers to a response, and notes its status and size for the log."""

    __slots__ = ("_send", "size_bytes", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.size_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            named = {name.lower() for name, _ in headers}
            headers += [pair for pair in SECURITY_HEADERS if pair[0] not in named]
            message["headers"] = headers
        elif message["type"] == "http.response.body":
            self.size_bytes += len(message.get("body", b""))
        await self._send(message)


def _log(scope: MutableMapping[str, Any], response: _LoggedResponse, seconds: float) -> None:
    principal, client = scope.get(PRINCIPAL), scope.get("client")
    # The raw path is still encoded, and repr escapes line breaks: a path cannot forge a log line.
    path = repr(scope.get("raw_path", b"")[:500])[2:-1]
    facts = {
        "client": client[0] if client else "-",
        "actor": principal.actor if principal else (f"endpoint:{caller}" if (caller := scope.get(CALLER)) else "-"),
        "method": scope["method"],
        "path": path,
        "status": response.status,
        "size_bytes": response.size_bytes,
        "milliseconds": round(seconds * 1000, 2),
    }
    _access.info(
        "%(client)s %(actor)s %(method)s %(path)s %(status)d %(size_bytes)d B %(milliseconds).1f ms",
        facts,
        extra={"request": facts},
    )
