"""Forwards requests for `/endpoints/NAME/…` to the process of the endpoint NAME.

GET  /endpoints                       list of the endpoints, with the path of each
any  /endpoints/NAME/PATH             PATH of the endpoint: predict, labels, health, metrics, openapi.json, v2/…

The middleware has already checked host, origin and login; `EndpointAddresses` turns the name into an address. Requests
are forwarded unchanged, except for headers of a single connection (RFC 9110, section 7.6.1), headers that the
middleware has checked, and credentials for this server, which the endpoint does not need.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import msgspec
from litestar.handlers import asgi
from litestar.types import Receive, Scope, Send

from everloop.http.body_limits import BodyError
from everloop.server.error_responses import error_content, send_refusal
from everloop.server.gateway.endpoint_addresses import PREFIX, EndpointAddress, EndpointAddresses, split_path
from everloop.server.gateway.upstream_client import Pool, Upstream, UpstreamError
from everloop.server.request_context import BODY, BODY_KIND, CALLER, CALLERS, NEEDS, demand

if TYPE_CHECKING:
    from everloop.http.body_limits import BodyWatch
    from everloop.server.server_options import ServerOptions

GATHERED_BYTES = 256 * 1024
"""How much of a body is collected before the request is forwarded, so that slow clients occupy no connection to the
endpoint."""
MOST_AT_ONCE = 512
"""Most open requests to one endpoint, so that a slow endpoint cannot block the whole server."""
MOST_SWALLOWED_BYTES = 64 * 1024 * 1024
SWALLOW_S = 15.0
"""How much of a refused body is read and dropped, and for how long."""
OWN_TOKEN = b"x-everloop-endpoint-token"
"""The header for the endpoint's own token, for clients whose `Authorization` has their login at this server."""
ADDRESS = b"x-everloop-address"
"""The client's address of the endpoint, `host/endpoints/NAME`, which the endpoint uses in its examples."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_CHECKED = {b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"sec-fetch-user"}
"""Headers that the middleware has checked against this server's host name; the endpoint's process has another one."""
_DROPPED = _HOP | _CHECKED | {b"host", b"content-length", b"expect", OWN_TOKEN, ADDRESS}
_TARGET = re.compile(rb"[\x21-\x7e]+")
_SOON = ((b"retry-after", b"1"),)


class Gateway:
    """The ASGI app below `/endpoints`. Belongs to one event loop."""

    def __init__(self, endpoints: EndpointAddresses, options: ServerOptions) -> None:
        self.endpoints = endpoints
        self.options = options
        self.pool = Pool()
        self._open_requests: dict[str, int] = {}

    def routes(self) -> list[Any]:
        """Return the routes for the control plane."""

        @asgi(
            PREFIX.decode(),
            is_mount=True,
            copy_scope=True,
            opt={NEEDS: "viewer", BODY_KIND: "upload", CALLERS: True},
        )
        async def endpoint_requests(scope: Scope, receive: Receive, send: Send) -> None:
            await self(scope, receive, send)  # type: ignore[arg-type]

        return [endpoint_requests]

    async def close(self) -> None:
        self.pool.close()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        path = scope["raw_path"].decode("latin-1")
        parts = split_path(scope)
        if parts is None and path.rstrip("/") == PREFIX.decode() and scope["method"] in _SAFE:
            await self._list(scope["method"], send)
            return
        endpoint = None if parts is None else await self.endpoints.find(parts[0])
        if parts is None or endpoint is None:
            await self._refuse_unknown(path, send)
            return
        if scope.get(CALLER) != endpoint.name and scope["method"] not in _SAFE:
            # The prediction is logged, which affects monitoring of the model.
            demand(scope, "editor")
        watch: BodyWatch = scope[BODY]
        watch.limit_to(endpoint.max_body_bytes)
        if watch.too_long:
            await self._refuse_too_long(watch, endpoint, path, send)
            return
        if not await self._is_available(endpoint, path, send):
            return
        self._open_requests[endpoint.name] = self._open_requests.get(endpoint.name, 0) + 1
        try:
            await self._forward(endpoint, parts[1] or b"/", scope, receive, send, path)
        except BodyError as error:
            if error.status_code != 413:
                raise
            # The body had no declared length. No response has been sent yet, as its body was still being received.
            await self._refuse_too_long(watch, endpoint, path, send)
        finally:
            self._open_requests[endpoint.name] -= 1

    async def _list(self, method: str, send: Send) -> None:
        found = [
            {"name": endpoint.name, "state": endpoint.state, "path": f"{PREFIX.decode()}/{endpoint.name}/predict"}
            for endpoint in await self.endpoints.all()
        ]
        body = msgspec.json.encode(found)
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body, "more_body": False})

    async def _refuse_unknown(self, path: str, send: Send) -> None:
        name = path[len(PREFIX) + 1 :].partition("/")[0][:100]
        names = await self.endpoints.names()
        advice = (
            f"Endpoints: {', '.join(names)}" if names else "There are none yet. A loop's first release creates one."
        )
        await send_refusal(send, path, 404, f"There is no endpoint '{name}'.", name="NotFoundError", help=advice)

    async def _refuse_too_long(self, watch: BodyWatch, endpoint: EndpointAddress, path: str, send: Send) -> None:
        """Refuse a body for its length, but read part of it.

        Many clients read the response only after they have sent everything; otherwise they would only see a broken
        connection.
        """
        body = msgspec.json.encode(
            error_content(
                path, 413, "RequestError", f"The body is larger than {endpoint.max_body_bytes} bytes.",
                f"Send fewer rows at once, or raise the limit: everloop endpoints set {endpoint.name} max_body_bytes=N",
            )
        )  # fmt: skip
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": head})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await watch.swallow(MOST_SWALLOWED_BYTES, SWALLOW_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _is_available(self, endpoint: EndpointAddress, path: str, send: Send) -> bool:
        if not endpoint.has_routes:
            message = f"The endpoint '{endpoint.name}' serves no version yet."
            advice = "Release one: everloop run"
        elif endpoint.address is None:
            message = f"The endpoint '{endpoint.name}' is not ready; its state is '{endpoint.state}'."
            advice = (
                f"Try again in a second. 'everloop up' keeps it running; 'everloop serve {endpoint.name}' starts it."
            )
        elif self._open_requests.get(endpoint.name, 0) >= MOST_AT_ONCE:
            message = f"The endpoint '{endpoint.name}' already has {MOST_AT_ONCE} open requests."
            advice = "Try again in a second, or send requests to the endpoint's own port."
        else:
            return True
        await send_refusal(send, path, 503, message, name="UnavailableError", help=advice, headers=_SOON)
        return False

    async def _forward(
        self, endpoint: EndpointAddress, rest: bytes, scope: dict[str, Any], receive: Receive, send: Send, path: str
    ) -> None:
        query = scope.get("query_string", b"")
        url = rest + (b"?" + query if query else b"")
        if not _TARGET.fullmatch(url):
            await send_refusal(
                send, path, 400, "The path has characters that are not allowed in a URL.", name="RequestError",
                help="Percent-encode them.",
            )  # fmt: skip
            return
        pieces, size, complete = [], 0, False
        while not complete and size <= GATHERED_BYTES:
            event: Any = await receive()
            pieces.append(event.get("body", b""))
            size += len(pieces[-1])
            complete = not event.get("more_body", False)
        beginning = b"".join(pieces)
        head = self._head(scope, url, endpoint, len(beginning) if complete else None)
        bodiless = scope["method"] == "HEAD"
        upstream: Upstream | None = None
        started = False
        try:
            first = head + beginning if complete else head + _chunk(beginning)
            may_repeat = complete and scope["method"] in _SAFE
            upstream = await self._begin(endpoint, first, bodiless=bodiless, may_repeat=may_repeat)
            if not complete:
                complete = await self._send_rest(upstream, receive)
            async with asyncio.timeout(self.options.endpoint_answer_s):
                await upstream.wait_for_head()
            started = True
            await self._respond(upstream, send, complete)
            assert endpoint.address is not None  # noqa: S101 - checked in _is_available
            self.pool.give_back(endpoint.address, upstream)
            upstream = None
        except UpstreamError as error:
            if not started:
                self.endpoints.forget()
                await self._refuse_down(endpoint, error, path, send)
            # Otherwise the client sees a truncated body: the connection ends before its declared length.
        except TimeoutError:
            if not started:
                message = f"The endpoint '{endpoint.name}' did not respond within {self.options.endpoint_answer_s:g} s."
                await send_refusal(send, path, 504, message, name="UnavailableError")
        finally:
            if upstream is not None:
                upstream.close()
            self.pool.keep_only(self.endpoints.addresses())

    async def _begin(self, endpoint: EndpointAddress, first: bytes, *, bodiless: bool, may_repeat: bool) -> Upstream:
        """Send the beginning of a request, and return its connection.

        An idle connection may have been closed a moment ago. If the request changes nothing, it is then sent again on a
        new connection. Any other request is not repeated, as the endpoint may already have handled it.
        """
        assert endpoint.address is not None  # noqa: S101 - checked in _is_available
        upstream = self.pool.idle(endpoint.address)
        if upstream is not None:
            upstream.begin(first, bodiless=bodiless)
            if not may_repeat:
                return upstream
            try:
                async with asyncio.timeout(self.options.endpoint_answer_s):
                    await upstream.wait_for_head()
            except UpstreamError:
                upstream.close()
            else:
                return upstream
        if not await self.endpoints.is_served(endpoint.name):
            raise UpstreamError("no process on this machine serves it", sent=False)
        upstream = await self.pool.connect(endpoint.address)
        upstream.begin(first, bodiless=bodiless)
        return upstream

    async def _send_rest(self, upstream: Upstream, receive: Receive) -> bool:
        """Forward the rest of a body until it ends or the endpoint responds. Returns whether it ended."""
        complete = False
        while not complete:
            event: Any = await receive()
            complete = not event.get("more_body", False)
            if upstream.answered:
                return complete
            try:
                async with asyncio.timeout(self.options.stall_s):
                    await upstream.write(_chunk(event.get("body", b"")) + (b"0\r\n\r\n" if complete else b""))
            except TimeoutError:
                raise UpstreamError("it stopped reading the body", sent=True) from None
        return True

    async def _respond(self, upstream: Upstream, send: Send, complete: bool) -> None:
        """Stream the endpoint's response to the client.

        Args:
            complete: whether the request's body was read to its end.

        Raises:
            UpstreamError: the response broke off.
            TimeoutError: the client does not read it.
        """
        dropped = _HOP | _named_in(upstream.headers)
        headers = [(name, value) for name, value in upstream.headers if name not in dropped]
        if not complete:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": upstream.status, "headers": headers})
        async for piece, more in upstream.body():
            async with asyncio.timeout(self.options.stall_s):
                await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _refuse_down(self, endpoint: EndpointAddress, error: UpstreamError, path: str, send: Send) -> None:
        if error.sent:
            # The request may have been scored and logged, so the client has to decide whether to repeat it.
            message = f"The endpoint '{endpoint.name}' closed the connection before it responded: {error}"
            advice = "It may have scored the request. 'everloop up' restarts it."
            await send_refusal(send, path, 502, message, name="UnavailableError", help=advice)
            return
        message = f"The endpoint '{endpoint.name}' is down: {error}."
        advice = (
            f"Try again in a second. 'everloop up' restarts it; 'everloop serve {endpoint.name}' starts it by hand."
        )
        await send_refusal(send, path, 503, message, name="UnavailableError", help=advice, headers=_SOON)

    def _head(self, scope: dict[str, Any], url: bytes, endpoint: EndpointAddress, size: int | None) -> bytes:
        """Return the request's first line and headers. `size`: of the body; None: it is sent in chunks."""
        assert endpoint.address is not None  # noqa: S101 - checked in _is_available
        host, port = endpoint.address
        given: list[tuple[bytes, bytes]] = scope["headers"]
        dropped = _DROPPED | _named_in(given)
        has_login = self.options.auth and scope.get(CALLER) != endpoint.name
        if has_login:
            # These credentials are for this server.
            dropped |= {b"authorization", b"cookie"}
        lines = [
            b"%b %b HTTP/1.1" % (scope["method"].encode("ascii"), url),
            b"host: %b:%d" % (f"[{host}]".encode() if ":" in host else host.encode(), port),
        ]
        lines += [b"%b: %b" % (name, value) for name, value in given if name not in dropped]
        if requested_host := next((value for name, value in given if name == b"host"), None):
            lines.append(b"%b: %b%b/%b" % (ADDRESS, requested_host, PREFIX, endpoint.name.encode()))
        token = next((value for name, value in given if name == OWN_TOKEN), None)
        if token is not None and (has_login or not any(name == b"authorization" for name, _ in given)):
            lines.append(b"authorization: Bearer " + token.removeprefix(b"Bearer "))
        if size is None:
            lines.append(b"transfer-encoding: chunked")
        elif size or scope["method"] not in _SAFE:
            lines.append(b"content-length: %d" % size)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def _named_in(headers: list[tuple[bytes, bytes]]) -> set[bytes]:
    """Return the headers that `Connection` names, which are for this connection only."""
    return {part.strip().lower() for name, value in headers if name == b"connection" for part in value.split(b",")} - {
        b"authorization",
        b"content-type",
    }


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


__all__ = ["Gateway"]
