"""Every request to the control plane passes here before any route sees it.

In this order: the guard that every HTTP process has (`http/request_guard.py`: 421, 403, 415), who sends the request
(401, 429, 503), and how long its body may be (413, 408). Every answer gets the security headers and a line in the
access log (logger `everloop.access`).
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

    from everloop.server.gateway.endpoint_addresses import EndpointAddresses
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store

_access = logging.getLogger("everloop.access")
_LOGIN = ((b"www-authenticate", b'Basic realm="everloop", charset="UTF-8"'),)


class AccessMiddleware:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: ASGIApp,
        store: Store,
        options: ServerOptions,
        authenticator: Authenticator | None,
        open_paths: Collection[str],
        targets: EndpointAddresses | None = None,
    ) -> None:
        """Prepare.

        Args:
            targets: the endpoints behind this server; the own tokens of each open what is below its name.
        """
        self.app = app
        self.store = store
        self.options = options
        self.authenticator = authenticator
        self.open_paths = open_paths
        self.targets = targets
        own = urlsplit(options.public_url).netloc if options.public_url else ""
        self.guard = RequestGuard(HostRule(options.allowed_hosts), (own,) if own else ())
        self._proxies = read_networks(options.trusted_proxies)
        self._store_of_actor = lru_cache(maxsize=1024)(store.as_actor)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http":
            if str(scope["type"]) == "lifespan":
                await self.app(scope, receive, send)
            # There are no web sockets here; the server answers a handshake that nobody accepts with 403.
            return
        seen = cast("MutableMapping[str, Any]", scope)
        answer = _Answer(send)
        began = perf_counter()
        try:
            if await self._may_enter(seen, answer.send):
                watch = BodyWatch(receive, self.options, declared_length(seen["headers"]))
                seen[BODY] = watch
                await self.app(scope, watch.receive, answer.send)
        finally:
            if _access.isEnabledFor(logging.INFO):
                _log(seen, answer, perf_counter() - began)

    async def _may_enter(self, scope: MutableMapping[str, Any], send: Send) -> bool:
        path, server = scope["path"], scope.get("server")
        refusal = self.guard.refusal(scope["method"], scope["headers"], server[0] if server else None)
        scope[AUTH] = self.authenticator is not None
        scope.setdefault("state", {})[STORE] = self.store
        # Which media types are taken is for those to know who have logged in.
        if (refusal is None or refusal.status == 415) and not await self._has_access(scope, send):
            return False
        if refusal is not None:
            await send_refusal(send, path, refusal.status, refusal.message, help=refusal.help)
        return refusal is None

    async def _has_access(self, scope: MutableMapping[str, Any], send: Send) -> bool:
        """Whether the request's credentials open anything; each route asks for the role that it needs."""
        if self.authenticator is None:
            return True
        path = scope["path"]
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        try:
            if len(given) > 1:
                raise CredentialsError(401, "There are two sets of credentials.")
            if given and self.targets is not None and (name := await self.targets.caller(scope, given[0])) is not None:
                scope[CALLER] = name
                return True
            address = client_address(scope, self._proxies)
            principal = await self.authenticator.identify(given[0] if given else None, address)
            if principal is None and path not in self.open_paths:
                raise CredentialsError(401, "This needs a login.")
        except CredentialsError as error:
            more = _LOGIN if error.status == 401 else ((b"retry-after", str(error.wait_s).encode()),)
            await send_refusal(send, path, error.status, error.message, headers=more)
            return False
        if principal is not None:
            scope[PRINCIPAL] = principal
            scope["state"][STORE] = self._store_of_actor(principal.actor)
        return True


class _Answer:
    """What is sent, with the security headers, counted for the log."""

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


def _log(scope: MutableMapping[str, Any], answer: _Answer, seconds: float) -> None:
    principal, client = scope.get(PRINCIPAL), scope.get("client")
    # The raw path is as it came, still encoded, and repr leaves no line break: a path cannot forge a line.
    path = repr(scope.get("raw_path", b"")[:500])[2:-1]
    facts = {
        "client": client[0] if client else "-",
        "actor": principal.actor if principal else (f"endpoint:{caller}" if (caller := scope.get(CALLER)) else "-"),
        "method": scope["method"],
        "path": path,
        "status": answer.status,
        "size_bytes": answer.size_bytes,
        "milliseconds": round(seconds * 1000, 2),
    }
    _access.info(
        "%(client)s %(actor)s %(method)s %(path)s %(status)d %(size_bytes)d B %(milliseconds).1f ms",
        facts,
        extra={"request": facts},
    )
