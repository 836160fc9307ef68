"""Refuses a request before a route has seen it: one JSON body, then the connection closes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

LONGEST_MESSAGE = 2_000
"""Characters of a message. It may quote what a client sent, which must not echo 8 MB."""


def clipped(text: str, most: int = LONGEST_MESSAGE) -> str:
    """The text, cut to `most` characters if it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def error_content(name: str, message: str, help: str | None = None) -> dict[str, Any]:
    """The JSON body of an error: `{"error": {"type", "message", "help"}}`."""
    return {"error": {"type": name, "message": clipped(message), "help": None if help is None else clipped(help)}}


async def send_refusal(
    send: Callable[[Any], Awaitable[None]],
    status: int,
    content: Any,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Respond without reading the body. The connection closes, so the rest need not be read."""
    import msgspec

    body = msgspec.json.encode(content)
    sent = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body, "more_body": False})
