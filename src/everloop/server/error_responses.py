"""Bodies of error responses: one JSON shape everywhere, and MLflow's own shape on MLflow's routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.http import error_bodies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from litestar.types import Send

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Sent with each response, unless the route sets a header of the same name."""

LONGEST_MESSAGE = 4000

_MLFLOW_ROOTS = ("/api/2.0/", "/api/3.0/", "/ajax-api/", "/v1/traces", "/graphql", "/get-artifact", "/model-versions/")
_MLFLOW_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "RESOURCE_CONFLICT",
    413: "INVALID_PARAMETER_VALUE",
    421: "PERMISSION_DENIED",
    429: "REQUEST_LIMIT_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}


def shown_message(message: str) -> str:
    """Return the message as it is sent: cut to a bounded length, and with characters that JSON can hold."""
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[:LONGEST_MESSAGE]}…"
    return message.encode("utf-8", "backslashreplace").decode()


def error_content(path: str, status: int, name: str, message: str, help: str | None = None) -> dict[str, Any]:
    """Return the body of an error response, in the shape that clients of this path understand."""
    message = shown_message(message)
    if path.startswith(_MLFLOW_ROOTS):
        code = _MLFLOW_CODES.get(status, "INTERNAL_ERROR" if status >= 500 else "BAD_REQUEST")
        return {"error_code": code, "message": f"{message} {help}" if help else message}
    return error_bodies.error_content(name, message, help)


def json_response(value: Any) -> Any:
    """Encode a response here, in the route's thread, so that a long one does not block the event loop."""
    import msgspec
    from litestar import MediaType, Response

    return Response(msgspec.json.encode(value), media_type=MediaType.JSON)


async def send_refusal(
    send: Send,
    path: str,
    status: int,
    message: str,
    *,
    name: str = "Refused",
    help: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send an error response without reading the body; the connection closes."""
    await error_bodies.send_refusal(send, status, error_content(path, status, name, message, help), headers)
