"""How a request is refused before a route has seen it: one JSON body, and a connection that closes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

LONGEST_MESSAGE = 2_000
"""Characters of a message. What a client sent may stand in it, and an answer is not an echo of 8 MB."""


def clipped(text: str, most: int = LONGEST_MESSAGE) -> str:
    """The text, shortened where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def error_content(name: str, message: str, help: str | None = None) -> dict[str, Any]:
    """The body of a refusal: `{"error": {"type", "message", "help"}}`."""
    return {"error": {"type": name, "message": clipped(message), "help": None if help is None else clipped(help)}}


async def send_refusal(
    send: Callable[[Any], Awaitable[None]],
    status: int,
    content: Any,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer without having read the body. The connection closes, so that the rest of it need not be read."""
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
