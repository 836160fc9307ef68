"""HTTP responses that do not come from a protocol, and how responses leave over ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.http.error_bodies import error_content
from everloop.serving.protocols.protocol import Response

if TYPE_CHECKING:
    from everloop.http.request_guard import RequestGuard

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def problem(status: int, kind: str, message: str, help: str | None = None) -> Response:
    return Response(status=status, body=msgspec.json.encode(error_content(kind, message, help)))


def refused_by(guard: RequestGuard, scope: Scope) -> Response | None:
    """The response to a request that the guard refuses, whose body is not read; None if the guard lets it through."""
    server = scope.get("server")
    refusal = guard.refusal(scope["method"], scope["headers"], server[0] if server else None)
    if refusal is None:
        return None
    response = problem(refusal.status, "Refused", refusal.message, refusal.help)
    response.headers = [(b"connection", b"close")]
    return response


def not_authorized(status: int, wait_s: int) -> Response:
    """The response to a request that `Authorization` refuses.

    Args:
        status: 401, 429 or 503.
        wait_s: after how many seconds a client that exceeded its rate may try again.
    """
    if status == 503:
        return problem(503, "UnavailableError", "Cannot check the token: the store cannot be read.", "Try again later.")
    if status == 401:
        denied = problem(401, "TrustError", "This endpoint requires a token.", "Send: Authorization: Bearer TOKEN")
        denied.headers = [(b"www-authenticate", b"Bearer")]
        return denied
    limited = problem(429, "UnavailableError", "This client exceeds its rate limit.", "Try again later.")
    limited.headers = [(b"retry-after", b"%d" % wait_s)]
    return limited


def with_headers(send: Send, headers: Sequence[tuple[bytes, bytes]]) -> Send:
    """The same `send`, which adds these headers to each response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return send_with_headers


def head_of(response: Response) -> list[tuple[bytes, bytes]]:
    """The headers of a response: its own and those that every response has."""
    headers = [(b"content-type", response.content_type), (b"content-length", b"%d" % len(response.body))]
    if response.version is not None and response.result is not None:
        headers.append((b"x-everloop-version", response.version.encode("ascii", "replace")))
        headers.append((b"x-everloop-request", response.result.request_id.encode()))
    if response.status == 503:
        headers.append((b"retry-after", b"1"))
    headers.extend(response.headers)
    return headers


async def send_response(send: Send, response: Response) -> None:
    await send({"type": "http.response.start", "status": response.status, "headers": head_of(response)})
    await send({"type": "http.response.body", "body": response.body})


__all__ = ["head_of", "not_authorized", "problem", "refused_by", "send_response", "with_headers"]
