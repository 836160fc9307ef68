"""Events as server-sent events: one poll of the store serves every open page.

    GET /api/v1/stream    text/event-stream; each message is an event as JSON, its id is the event's number

A page that reconnects sends the number of the last event that it has seen in the header `Last-Event-ID`, and receives
the events after it, or a message `reset` if there are too many: then it reads everything again. While no page
listens, the store is not polled.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import get
from litestar.response import Stream

from everloop.errors import EverloopError, UnavailableError
from everloop.server.request_context import NEEDS, ApiRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from everloop.records import Event
    from everloop.stores import Store

_log = logging.getLogger("everloop.server")

POLL_S = 0.5
HEARTBEAT_S = 15.0
"""A comment is sent after this long without an event, so that proxies keep the connection and dead ones are noticed."""
MOST_LISTENERS = 500
MOST_MISSED = 1000
"""A page that has missed more events than this reads everything again."""
_BACK_OFF_S = 5.0
_PRIVATE = frozenset({"user", "token", "webhook"})


class EventStream:
    """Polls the store for events while pages listen, and hands them to every listener. Used by one event loop."""

    def __init__(self, store: Store, *, poll_s: float = POLL_S, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._store = store
        self._poll_s = poll_s
        self._heartbeat_s = heartbeat_s
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    def routes(self) -> list[Any]:
        # `stream` closes over this object, so the route needs no global state.
        @get("/api/v1/stream", include_in_schema=False, opt={NEEDS: "viewer"})
        async def stream(request: ApiRequest) -> Stream:
            """Send the project's events as they happen."""
            since = request.headers.get("last-event-id", "")
            number = int(since) if since.isascii() and since.isdecimal() and len(since) <= 18 else None
            messages = self.listen(number)
            headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
            return Stream(messages, media_type="text/event-stream", headers=headers)

        return [stream]

    def listen(self, since: int | None = None) -> AsyncIterator[bytes]:
        """Return the messages for one listener.

        Raises:
            UnavailableError: too many pages listen already.
        """
        if len(self._listeners) >= MOST_LISTENERS:
            raise UnavailableError(f"{MOST_LISTENERS} pages listen already.", help="Close some of them.")
        return self._messages(since)

    async def close(self) -> None:
        """End all streams, so that the server can stop."""
        self._closed = True
        for queue in self._listeners:
            queue.put_nowait(None)
        if self._poller is not None:
            self._poller.cancel()

    async def _messages(self, since: int | None) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            if self._poller is None or self._poller.done():
                self._poller = asyncio.create_task(self._poll())
            yield b"retry: 2000\n\n"
            sent = 0
            if since is not None:
                missed = await asyncio.to_thread(self._read, since, MOST_MISSED + 1)
                if len(missed) > MOST_MISSED:
                    yield b"event: reset\ndata: {}\n\n"
                else:
                    for event in missed:
                        sent = event.seq
                        yield _message(event)
            while not self._closed:
                try:
                    message = await asyncio.wait_for(queue.get(), self._heartbeat_s)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if message is None:
                    return
                # The poller may repeat what was just read as missed.
                if _number(message) > sent:
                    yield message
        finally:
            self._listeners.discard(queue)

    async def _poll(self) -> None:
        last: int | None = None
        while self._listeners and not self._closed:
            try:
                newest = await asyncio.to_thread(self._store.records.last_event)
                if last is not None and newest > last:
                    events = await asyncio.to_thread(self._read, last, MOST_MISSED + 1)
                    # More may have been written since the newest number was read.
                    newest = max([newest, *(event.seq for event in events)])
                    messages = [_message(event) for event in events]
                    if len(events) > MOST_MISSED:
                        messages = [f"event: reset\nid: {newest}\ndata: {{}}\n\n".encode()]
                    for queue in self._listeners:
                        for message in messages:
                            queue.put_nowait(message)
                last = newest
                pause = self._poll_s
            except EverloopError as error:
                _log.warning("Events cannot be read: %s", error)
                pause = _BACK_OFF_S
            await asyncio.sleep(pause)

    def _read(self, since: int, limit: int) -> list[Event]:
        return self._store.records.events_since(since, limit=limit)


def _message(event: Event) -> bytes:
    # A page asks for the record itself, so the event's data stays here.
    shown = {"seq": event.seq, "at": event.at, "verb": event.verb, "kind": event.kind, "key": event.key}
    if event.kind in _PRIVATE:
        shown["key"] = ""
    return b"id: %d\ndata: %s\n\n" % (event.seq, msgspec.json.encode(shown))


def _number(message: bytes) -> int:
    for line in message.split(b"\n"):
        if line.startswith(b"id: "):
            return int(line[4:])
    return 1 << 62
