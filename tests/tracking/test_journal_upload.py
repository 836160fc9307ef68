"""Upload of journals to a real server: each point arrives exactly once, even over a bad network."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from everloop.errors import UnavailableError, UsageError
from everloop.records import Run
from everloop.server.control_app import make_app
from everloop.stores import Store, open_store
from everloop.stores.journals import list_journals
from everloop.tracking import read_metrics, start_run
from everloop.tracking.journal.ingest import ingest_frames
from everloop.tracking.journal.upload import JournalUploader, upload_journals


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Store]:
    """The server's store."""
    with open_store(tmp_path / "far") as opened:
        yield opened


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def logged(store: Store, count: int = 50, name: str = "train") -> Run:
    with start_run(name, store=store, params={"lr": 0.1}, tags={"a": "b"}) as run:
        for step in range(count):
            run.log(loss=step / 2, step=step)
    return run.record


def steps(store: Store, run: str) -> list[int]:
    return [point.step for point in read_metrics(store, run, "loss")]


@pytest.mark.slow
def test_a_living_run_is_followed_and_its_end_as_well(store: Store, far: Store) -> None:
    with serving(make_app(far)) as url, JournalUploader(store.journals, url) as uploader:
        with start_run("train", store=store, params={"lr": 0.1}) as run:
            run.log(loss=1.0, step=0)
            assert uploader.upload() > 0
            assert uploader.upload() == 0
            there = far.records.get(Run, run.id)
            assert (there.state, there.params, there.metrics) == ("running", {"lr": 0.1}, {"loss": 1.0})
            run.set_tag("x", "y")
            run.log(loss=0.5, step=1)
            uploader.upload()
            run.log(loss=0.25, step=2)
        assert len(list_journals(uploader.outbox)) == 1
        uploader.upload()
        assert list_journals(uploader.outbox) == []
    here, there = run.record, far.records.get(Run, run.id)
    assert (there.state, there.metrics, there.tags) == ("finished", {"loss": 0.25}, {"x": "y"})
    assert (there.seconds, there.ended_at, there.source) == (here.seconds, here.ended_at, here.source)
    assert steps(far, run.id) == [0, 1, 2]
    assert steps(store, run.id) == [0, 1, 2]


class Unreliable:
    """A network that loses requests, loses answers, delivers twice, and a server that is busy now and then."""

    def __init__(self, app: Any, seed: int) -> None:
        self.app = app
        self.chance = random.Random(seed)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        fate = self.chance.choice(["well", "well", "lost", "busy", "unheard", "twice"])
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break

        def again() -> Any:
            given = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def receive_again() -> Any:
                return next(given, {"type": "http.disconnect"})

            return receive_again

        async def unheard(event: Any) -> None:
            pass

        if fate in ("unheard", "twice"):
            await self.app({**scope, "state": {}}, again(), unheard)
        if fate in ("well", "twice"):
            await self.app({**scope, "state": {}}, again(), send)
            return
        await send({"type": "http.response.start", "status": 503 if fate == "busy" else 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_network_does_each_point_arrives_once(
    store: Store, far: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everloop.tracking.journal.upload.BATCH_BYTES", 300)
    monkeypatch.setattr("everloop.tracking.journal.upload._PAUSE_S", (0.001, 0.01))
    with serving(Unreliable(make_app(far), seed)) as url, JournalUploader(store.journals, url).start(every_s=0.005):
        runs = [logged(store, 40, f"run-{number}") for number in range(3)]
        deadline = time.monotonic() + 20
        while list_journals(store.journals / "outbox") and time.monotonic() < deadline:
            time.sleep(0.02)
    for run in runs:
        assert steps(far, run.id) == list(range(40))
        there = far.records.get(Run, run.id)
        assert (there.state, there.metrics, there.params) == ("finished", run.metrics, run.params)


def test_what_was_gathered_without_a_network_is_sent_later(store: Store, far: Store) -> None:
    with JournalUploader(store.journals, "http://127.0.0.1:9") as uploader:
        logged(store)
        with pytest.raises(UnavailableError):
            uploader.upload()
        other = logged(store)
    with pytest.raises(UnavailableError, match="does not respond"):
        upload_journals(store.journals, "http://127.0.0.1:9", patience_s=0.1)
    with serving(make_app(far)) as url:
        assert upload_journals(store.journals, url) > 0
        assert upload_journals(store.journals, url) == 0
    assert len(far.records.find(Run)) == 2
    assert steps(far, other.id) == list(range(50))


@pytest.mark.slow
def test_a_server_that_restarts_is_gone_on_with(store: Store, far: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0, step=0)
        with serving(make_app(far)) as url:
            uploader = JournalUploader(store.journals, url)
            uploader.upload()
        run.log(loss=2.0, step=1)
        with pytest.raises(UnavailableError):
            uploader.upload()
        with serving(make_app(far), port=int(url.rpartition(":")[2])):
            uploader.upload()
            uploader.stop()
    assert steps(far, run.id) == [0, 1]


def frames_of(store: Store) -> tuple[str, bytes]:
    """Name and frames of a finished journal."""
    (store.journals / "outbox").mkdir(parents=True)
    logged(store, 5)
    (path,) = list_journals(store.journals / "outbox")
    return path.stem, path.read_bytes()[8:]


def test_batches_that_come_again_or_overlap_change_nothing(store: Store, far: Store) -> None:
    from everloop.stores.journals import split_frames

    writer, body = frames_of(store)
    cuts = [0, *(end for _, end in split_frames(body))]
    assert ingest_frames(far, writer, 0, b"") == 8
    assert ingest_frames(far, writer, 8 + cuts[4], body[cuts[4] :]) == 8  # too early: go on from the beginning
    assert far.records.find(Run) == []
    assert ingest_frames(far, writer, 8, body[: cuts[4]]) == 8 + cuts[4]
    assert ingest_frames(far, writer, 8, body[: cuts[4]]) == 8 + cuts[4]
    assert ingest_frames(far, writer, 8 + cuts[2], body[cuts[2] : cuts[6]]) == 8 + cuts[6]
    assert ingest_frames(far, writer, 8, body) == 8 + len(body)
    assert ingest_frames(far, writer, 8, body) == 8 + len(body)
    (run,) = far.records.find(Run)
    assert steps(far, run.id) == list(range(5))
    assert run.state == "finished"


def test_what_makes_no_sense_is_refused(store: Store, far: Store) -> None:
    writer, body = frames_of(store)
    for name in ("../../etc/passwd", "predictions-a.0123456789abcdef", "run-x", "run-../x.0123456789abcdef"):
        with pytest.raises(UsageError, match="is not the journal of a run"):
            ingest_frames(far, name, 8, body)
    for broken in (body[:-1], b"x" * 100, body[:5]):
        with pytest.raises(UsageError, match="cannot be read"):
            ingest_frames(far, writer, 8, broken)
    with pytest.raises(UsageError, match="contains another run"):
        ingest_frames(far, "run-other.0123456789abcdef", 8, body)
    with pytest.raises(UsageError, match="is not accepted"):
        ingest_frames(far, writer, -1, body)
    assert far.records.find(Run) == []
    with serving(make_app(far)) as url:
        answers = [
            httpx.post(f"{url}/api/v1/journals", params=params, content=content).status_code
            for params, content in [
                ({"writer": writer, "offset": "x"}, body),
                ({"writer": writer}, b"garbage"),
                ({}, body),
            ]
        ]
    assert answers == [400, 400, 400]


def test_a_run_deleted_there_stays_deleted(store: Store, far: Store) -> None:
    with serving(make_app(far)) as url, JournalUploader(store.journals, url) as uploader:
        with start_run("train", store=store) as run:
            uploader.upload()
            far.records.delete(Run, run.id)
            run.log(loss=1.0)
        uploader.upload()
    assert far.records.find(Run) == []
    assert list_journals(store.journals / "outbox") == []


def test_an_address_is_one(store: Store) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        JournalUploader(store.journals, "ftp://example.com")
