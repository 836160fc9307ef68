"""The stream of events: every listener gets every event once, missed ones included, and the server can stop."""

from __future__ import annotations

import asyncio
import http.client
from time import monotonic

import msgspec
import pytest

from everloop.records import Run
from everloop.server.control_server import STOP_S
from everloop.server.event_stream import EventStream


def _run(store):
    store.records.put(store.new(Run, name="r", started_at=store.now()))
    return store.records.last_event()


async def _collect(messages, count):
    found = []
    async for message in messages:
        for part in message.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in part.split("\n") if ": " in line and not line.startswith(":"))
            if "data" in lines:
                found.append((lines.get("event", "message"), msgspec.json.decode(lines["data"])))
        if len(found) >= count:
            break
    await messages.aclose()
    return found


def test_listeners_receive_events_as_they_happen(store):
    async def scenario():
        stream = EventStream(store, poll_s=0.01)
        listeners = [asyncio.create_task(_collect(stream.listen(), 3)) for _ in range(5)]
        await asyncio.sleep(0.1)
        numbers = [await asyncio.to_thread(_run, store) for _ in range(3)]
        for found in await asyncio.wait_for(asyncio.gather(*listeners), 10):
            assert [event["seq"] for _, event in found] == numbers
            assert found[0][1]["kind"] == "run"
        await stream.close()

    asyncio.run(scenario())


def test_a_page_that_returns_gets_what_it_has_missed_exactly_once(store):
    async def scenario():
        stream = EventStream(store, poll_s=0.01)
        seen = _run(store)
        missed = [_run(store), _run(store)]
        listener = asyncio.create_task(_collect(stream.listen(seen), 4))
        await asyncio.sleep(0.1)
        later = [await asyncio.to_thread(_run, store) for _ in range(2)]
        found = await asyncio.wait_for(listener, 10)
        assert [event["seq"] for _, event in found] == missed + later
        await stream.close()

    asyncio.run(scenario())


def test_a_page_that_has_missed_too_much_reads_everything_again(store, monkeypatch):
    monkeypatch.setattr("everloop.server.event_stream.MOST_MISSED", 3)

    async def scenario():
        stream = EventStream(store, poll_s=0.01)
        seen = _run(store)
        for _ in range(5):
            _run(store)
        ((kind, _),) = await asyncio.wait_for(_collect(stream.listen(seen), 1), 10)
        assert kind == "reset"
        await stream.close()

    asyncio.run(scenario())


def test_the_store_is_not_polled_while_nobody_listens(store):
    async def scenario():
        stream = EventStream(store, poll_s=0.01)
        listener = asyncio.create_task(_collect(stream.listen(), 1))
        await asyncio.sleep(0.05)
        poller = stream._poller
        await asyncio.to_thread(_run, store)
        await asyncio.wait_for(listener, 10)
        await asyncio.wait_for(poller, 10)
        assert poller.done()

    asyncio.run(scenario())


def test_closing_ends_every_stream(store):
    async def scenario():
        stream = EventStream(store, poll_s=0.01)
        listener = asyncio.create_task(_collect(stream.listen(), 1))
        await asyncio.sleep(0.05)
        await stream.close()
        assert await asyncio.wait_for(listener, 10) == []

    asyncio.run(scenario())


@pytest.mark.parametrize("given", ["", "-1", "1e3", "9" * 40, "²"])
def test_an_event_number_that_is_not_one_is_ignored(store, serve, given):
    with serve(store) as control:
        connection = http.client.HTTPConnection(*control.address, timeout=10)
        connection.putrequest("GET", "/api/v1/stream")
        connection.putheader("Last-Event-ID", given.encode())
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        assert answer.read1(13) == b"retry: 2000\n\n"[:13]
        connection.close()


def test_the_server_stops_at_once_although_a_page_listens(store, serve):
    with serve(store) as control:
        connection = http.client.HTTPConnection(*control.address, timeout=10)
        connection.request("GET", "/api/v1/stream")
        answer = connection.getresponse()
        answer.read1(13)
        stopping = monotonic()
    # Requests in flight would be waited for; the stream has no end of its own.
    assert monotonic() - stopping < STOP_S
    connection.close()
