"""Passing requests for `/endpoints/NAME/…` on to the process of the endpoint NAME.

GET  /endpoints                       the endpoints that there are, and where each answers
any  /endpoints/NAME/PATH             PATH of the endpoint: predict, labels, health, metrics, openapi.json, v2/…

The access guard has checked host, origin and login before; see `targets` for how a name becomes an address. What a
client sends is passed on as it came, except for headers that concern one connection only (RFC 9110, section 7.6.1),
what the guard has checked, and credentials for this server, which the endpoint has no use for.
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
"""How much of a body is gathered before the endpoint is asked, so that slow clients hold no connection to it."""
MOST_AT_ONCE = 512
"""Requests on their way to one endpoint; a slow endpoint cannot take the whole server."""
MOST_SWALLOWED_BYTES = 64 * 1024 * 1024
SWALLOW_S = 15.0
OWN_TOKEN = b"x-everloop-endpoint-token"
"""Where a client that logs in here puts the endpoint's own token."""
ADDRESS = b"x-everloop-address"
"""Tells the endpoint where its routes begin for the client, `host/endpoints/NAME`, for the examples in its answers."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_CHECKED = {b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"sec-fetch-user"}
"""What the guard has checked against the name of this server, which the endpoint's process does not have."""
_DROPPED = _HOP | _CHECKED | {b"host", b"content-length", b"expect", OWN_TOKEN, ADDRESS}
_TARGET = re.compile(rb"[\x21-\x7e]+")
_SOON = ((b"retry-after", b"1"),)


class Gateway:
    """The ASGI app below `/endpoints`. Belongs to one event loop."""

    def __init__(self, targets: EndpointAddresses, options: ServerOptions) -> None:
        self.targets = targets
        self.options = options
        self.pool = Pool()
        self._on_their_way: dict[str, int] = {}

    def routes(self) -> list[Any]:
        """What the control plane mounts."""

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
        asked = split_path(scope)
        if asked is None and path.rstrip("/") == PREFIX.decode() and scope["method"] in _SAFE:
            await self._list(scope["method"], send)
            return
        target = None if asked is None else await self.targets.find(asked[0])
        if asked is None or target is None:
            await self._unknown(path, send)
            return
        if scope.get(CALLER) != target.name and scope["method"] not in _SAFE:
            # An answer is logged, and moves what is known of the model.
            demand(scope, "editor")
        watch: BodyWatch = scope[BODY]
        watch.limit_to(target.max_body_bytes)
        if watch.too_long:
            await self._too_long(watch, target, path, send)
            return
        if not await self._can_be_asked(target, path, send):
            return
        self._on_their_way[target.name] = self._on_their_way.get(target.name, 0) + 1
        try:
            await self._forward(target, asked[1] or b"/", scope, receive, send, path)
        except BodyError as error:
            if error.status_code != 413:
                raise
            # It announced no length. Nothing has been answered while its body was still coming.
            await self._too_long(watch, target, path, send)
        finally:
            self._on_their_way[target.name] -= 1

    async def _list(self, method: str, send: Send) -> None:
        found = [
            {"name": one.name, "state": one.state, "path": f"{PREFIX.decode()}/{one.name}/predict"}
            for one in await self.targets.all()
        ]
        body = msgspec.json.encode(found)
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body, "more_body": False})

    async def _unknown(self, path: str, send: Send) -> None:
        name = path[len(PREFIX) + 1 :].partition("/")[0][:100]
        names = await self.targets.names()
        await send_refusal(
            send, path, 404, f"There is no endpoint '{name}'.", name="NotFoundError",
            help=f"Endpoints: {', '.join(names)}" if names else "There are none yet: a loop's first release makes one.",
        )  # fmt: skip

    async def _too_long(self, watch: BodyWatch, target: EndpointAddress, path: str, send: Send) -> None:
        """Refuse a body for its length, but swallow a part of it: many clients read no answer before they
        have sent everything, and would see a broken connection only."""
        body = msgspec.json.encode(
            error_content(
                path, 413, "RequestError", f"The body is larger than {target.max_body_bytes} bytes.",
                f"Send fewer rows at once, or raise it: everloop endpoints set {target.name} max_body_bytes=N",
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

    async def _can_be_asked(self, target: EndpointAddress, path: str, send: Send) -> bool:
        if not target.has_routes:
            message = f"The endpoint '{target.name}' has no version to answer with."
            advice = "Release one: everloop run"
        elif target.address is None:
            message = f"The endpoint '{target.name}' does not answer yet; its state is '{target.state}'."
            advice = f"Ask again in a second. 'everloop up' keeps it running, 'everloop serve {target.name}' starts it."
        elif self._on_their_way.get(target.name, 0) >= MOST_AT_ONCE:
            message = f"{MOST_AT_ONCE} requests are on their way to the endpoint '{target.name}'."
            advice = "Ask again in a second, or ask the endpoint's own port."
        else:
            return True
        await send_refusal(send, path, 503, message, name="UnavailableError", help=advice, headers=_SOON)
        return False

    async def _forward(
        self, target: EndpointAddress, rest: bytes, scope: dict[str, Any], receive: Receive, send: Send, path: str
    ) -> None:
        query = scope.get("query_string", b"")
        wanted = rest + (b"?" + query if query else b"")
        if not _TARGET.fullmatch(wanted):
            await send_refusal(send, path, 400, "The path holds bytes that no path may hold.", name="RequestError")
            return
        pieces, size, whole = [], 0, False
        while not whole and size <= GATHERED_BYTES:
            event: Any = await receive()
            pieces.append(event.get("body", b""))
            size += len(pieces[-1])
            whole = not event.get("more_body", False)
        began = b"".join(pieces)
        head = self._head(scope, wanted, target, len(began) if whole else None)
        bodiless = scope["method"] == "HEAD"
        upstream: Upstream | None = None
        started = False
        try:
            first = head + began if whole else head + _chunk(began)
            upstream = await self._asked(target, first, bodiless=bodiless, again=whole and scope["method"] in _SAFE)
            if not whole:
                whole = await self._send_rest(upstream, receive)
            async with asyncio.timeout(self.options.endpoint_answer_s):
                await upstream.wait_for_head()
            started = True
            await self._answer(upstream, send, whole)
            assert target.address is not None  # noqa: S101 - it was asked
            self.pool.give_back(target.address, upstream)
            upstream = None
        except UpstreamError as error:
            if not started:
                self.targets.forget()
                await self._down(target, error, path, send)
            # Else the client sees a short body: the connection ends before what was announced has come.
        except TimeoutError:
            if not started:
                message = f"The endpoint '{target.name}' did not answer within {self.options.endpoint_answer_s:g} s."
                await send_refusal(send, path, 504, message, name="UnavailableError")
        finally:
            if upstream is not None:
                upstream.close()
            self.pool.keep_only(self.targets.addresses())

    async def _asked(self, target: EndpointAddress, first: bytes, *, bodiless: bool, again: bool) -> Upstream:
        """A connection on which the request has been begun.

        A kept connection may have been closed a moment ago. What changes nothing is then sent again on a new one; of
        everything else nobody knows whether it was answered.
        """
        assert target.address is not None  # noqa: S101 - the caller has looked
        upstream = self.pool.idle(target.address)
        if upstream is not None:
            upstream.begin(first, bodiless=bodiless)
            if not again:
                return upstream
            try:
                async with asyncio.timeout(self.options.endpoint_answer_s):
                    await upstream.wait_for_head()
            except UpstreamError:
                upstream.close()
            else:
                return upstream
        if not await self.targets.is_served(target.name):
            raise UpstreamError("no process of this machine serves it", sent=False)
        upstream = await self.pool.connect(target.address)
        upstream.begin(first, bodiless=bodiless)
        return upstream

    async def _send_rest(self, upstream: Upstream, receive: Receive) -> bool:
        """Pass the rest of a body on, piece by piece, until its end or until the endpoint answers; whether it ended."""
        whole = False
        while not whole:
            event: Any = await receive()
            whole = not event.get("more_body", False)
            if upstream.answered:
                return whole
            try:
                async with asyncio.timeout(self.options.stall_s):
                    await upstream.write(_chunk(event.get("body", b"")) + (b"0\r\n\r\n" if whole else b""))
            except TimeoutError:
                raise UpstreamError("it takes no more of the body", sent=True) from None
        return True

    async def _answer(self, upstream: Upstream, send: Send, whole: bool) -> None:
        """Stream the endpoint's answer to the client.

        Raises:
            UpstreamError: it broke off.
            TimeoutError: the client does not take it.
        """
        dropped = _HOP | _named_in(upstream.headers)
        headers = [(name, value) for name, value in upstream.headers if name not in dropped]
        if not whole:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": upstream.status, "headers": headers})
        async for piece, more in upstream.body():
            async with asyncio.timeout(self.options.stall_s):
                await send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _down(self, target: EndpointAddress, error: UpstreamError, path: str, send: Send) -> None:
        if error.sent:
            # The request may have been scored and logged: whether it is asked again is for the client to decide.
            message = f"The endpoint '{target.name}' broke off before it answered: {error}"
            advice = "It may have scored the request. It is being started again if 'everloop up' keeps it running."
            await send_refusal(send, path, 502, message, name="UnavailableError", help=advice)
            return
        message = f"The endpoint '{target.name}' is down: {error}."
        advice = f"Ask again in a second. 'everloop up' starts it again, 'everloop serve {target.name}' by hand."
        await send_refusal(send, path, 503, message, name="UnavailableError", help=advice, headers=_SOON)

    def _head(self, scope: dict[str, Any], wanted: bytes, target: EndpointAddress, size: int | None) -> bytes:
        """The request's first line and headers. `size`: of the body; None: it follows in pieces."""
        assert target.address is not None  # noqa: S101 - the caller has looked
        host, port = target.address
        given: list[tuple[bytes, bytes]] = scope["headers"]
        dropped = _DROPPED | _named_in(given)
        asks_login = self.options.auth and scope.get(CALLER) != target.name
        if asks_login:
            # These were for this server.
            dropped |= {b"authorization", b"cookie"}
        lines = [
            b"%b %b HTTP/1.1" % (scope["method"].encode("ascii"), wanted),
            b"host: %b:%d" % (f"[{host}]".encode() if ":" in host else host.encode(), port),
        ]
        lines += [b"%b: %b" % (name, value) for name, value in given if name not in dropped]
        if asked := next((value for name, value in given if name == b"host"), None):
            lines.append(b"%b: %b%b/%b" % (ADDRESS, asked, PREFIX, target.name.encode()))
        own = next((value for name, value in given if name == OWN_TOKEN), None)
        if own is not None and (asks_login or not any(name == b"authorization" for name, _ in given)):
            lines.append(b"authorization: Bearer " + own.removeprefix(b"Bearer "))
        if size is None:
            lines.append(b"transfer-encoding: chunked")
        elif size or scope["method"] not in _SAFE:
            lines.append(b"content-length: %d" % size)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def _named_in(headers: list[tuple[bytes, bytes]]) -> set[bytes]:
    """The headers that `Connection` names: for this connection only."""
    return {part.strip().lower() for name, value in headers if name == b"connection" for part in value.split(b",")} - {
        b"authorization",
        b"content-type",
    }


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


__all__ = ["Gateway"]
