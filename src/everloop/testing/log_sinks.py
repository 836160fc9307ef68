"""The conformance suite for log sinks and the fold that reads them: no frame is lost, and none is duplicated."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import pytest

from everloop.prediction_log.configured_sink import open_sink
from everloop.prediction_log.journal_folding import StreamFold
from everloop.prediction_log.shipping import ShippingSink
from everloop.stores.home import StoreUrls, open_urls
from everloop.stores.journals import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

    from everloop.prediction_log.log_sinks import LogSink
    from everloop.stores import Store

STREAM = "frames"
TABLE = "frames/all"


@dataclass(frozen=True, kw_only=True)
class LogPlace:
    """Where frames are written, and where they are folded."""

    places: StoreUrls
    """URLs of the store with the tables."""
    writers: Path
    """Home of the writing processes. The same as that store's if they write to its journals."""
    environment: Mapping[str, str]
    """Environment variables of the writing processes, such as `EVERLOOP_LOG`."""

    def store(self) -> Store:
        """Open the store that folds."""
        return open_urls(self.places)

    @contextmanager
    def sink(self, **more: str) -> Iterator[LogSink]:
        """Open a sink in this process."""
        with open_urls(_home_urls(self.writers)) as store:
            sink = open_sink(store, STREAM, {**self.environment, **more})
            try:
                yield sink
            finally:
                sink.close()

    def fold(self) -> list[str]:
        """Fold everything that was written, and return all frames in the table."""
        with self.store() as store:
            frames_fold().run(store)
            return frames_in(store)


class LogSinkSuite:
    """Derive from this class and define a fixture `place` that returns a `LogPlace`."""

    kills = int(os.environ.get("EVERLOOP_KILLS", "1"))
    """Number of processes to kill in each test that kills at random."""

    def test_each_frame_is_folded_once(self, place: LogPlace) -> None:
        with place.sink() as sink:
            for number in range(50):
                sink.append(b"%d" % number)
        assert place.fold() == sorted(str(number) for number in range(50))
        assert place.fold() == sorted(str(number) for number in range(50))
        with place.sink() as sink:
            sink.append(b"more")
            sink.close()
        assert "more" in place.fold()

    def test_an_unused_sink_leaves_nothing(self, place: LogPlace) -> None:
        with place.sink():
            pass
        with place.store() as store:
            assert frames_fold().run(store) == 0

    def test_threads_and_instances_share_a_stream(self, place: LogPlace) -> None:
        def write(sink: LogSink, name: str) -> None:
            for number in range(40):
                sink.append(f"{name}-{number}".encode())

        with place.sink() as one, place.sink() as other:
            assert one.instance
            threads = [
                threading.Thread(target=write, args=(sink, f"{number}-{at}"))
                for number, sink in enumerate((one, other))
                for at in range(3)
            ]
            for thread in threads:
                thread.start()
            place.fold()
            for thread in threads:
                thread.join()
        assert place.fold() == sorted(f"{s}-{t}-{n}" for s in range(2) for t in range(3) for n in range(40))

    def test_large_frames_are_folded(self, place: LogPlace) -> None:
        frames = [letter * (3 << 20) for letter in ("a", "b", "c")]
        with place.sink() as sink:
            for frame in frames:
                sink.append(frame.encode())
        assert place.fold() == frames

    def test_simultaneous_folds_duplicate_nothing(self, place: LogPlace, tmp_path: Path) -> None:
        """Also folds on other machines, which do not share a lock."""
        moved: list[int] = []

        def fold(number: int) -> None:
            urls = place.places
            if place.writers != urls.home:
                urls = replace(urls, home=tmp_path / f"folder-{number}", log=urls.log or str(urls.home))
            with open_urls(urls) as store:
                for _ in range(3):
                    moved.append(frames_fold().run(store))

        for begin in range(0, 60, 20):
            for at in range(begin, begin + 20, 5):
                with place.sink() as sink:
                    for number in range(at, at + 5):
                        sink.append(b"%d" % number)
            threads = [threading.Thread(target=fold, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert place.fold() == sorted(str(number) for number in range(60))
        assert sum(moved) <= 60

    def test_writers_killed_at_random_lose_and_duplicate_nothing(self, place: LogPlace) -> None:
        chance = random.Random(11)  # noqa: S311 - a test
        acknowledged: list[str] = []
        for number in range(self.kills):
            acknowledged += _killed_writer(place, f"w{number}", chance.uniform(0.0, 0.4))
        with place.sink():
            # The next process ships what killed ones have left behind.
            sleep(0.3)
        found = place.fold()
        assert set(acknowledged) <= set(found)
        assert len(set(found)) == len(found)
        assert acknowledged

    def test_folds_killed_at_random_lose_and_duplicate_nothing(self, place: LogPlace) -> None:
        chance = random.Random(13)  # noqa: S311 - a test
        for begin in range(0, 60, 20):
            with place.sink() as sink:
                for number in range(begin, begin + 20):
                    sink.append(b"%d" % number)
        for _ in range(self.kills):
            _killed_fold(place, chance.randrange(1, 8))
        assert place.fold() == sorted(str(number) for number in range(60))

    def test_a_fold_that_stops_between_any_two_steps_can_be_repeated(self, place: LogPlace) -> None:
        for point in range(12):
            with place.sink() as sink:
                sink.append(b"%d" % (2 * point))
            with place.sink() as sink:
                sink.append(b"%d" % (2 * point + 1))
            with pytest.raises(_StopHere) if point < 3 else _maybe(), _stops(place.store(), point) as store:
                frames_fold().run(store)
        assert place.fold() == sorted(str(number) for number in range(24))


class _StopHere(BaseException):
    """Simulates a kill, so nothing may catch it."""


@contextmanager
def _maybe() -> Iterator[None]:
    """For late steps, which are not always reached."""
    try:
        yield
    except _StopHere:
        return


@contextmanager
def _stops(store: Store, point: int) -> Iterator[Store]:
    """A store in which a fold stops at its n-th step."""
    from everloop.prediction_log import segment_folding

    steps = iter(range(point, -1, -1))

    def step() -> None:
        if next(steps, 1) == 0:
            raise _StopHere

    with store, pytest.MonkeyPatch.context() as patch:
        _step_around(patch, type(store.tables), "append", step)
        _step_around(patch, Path, "unlink", step)
        _step_around(patch, segment_folding._Folding, "_delete", step)
        yield store


def _step_around(patch: pytest.MonkeyPatch, owner: Any, name: str, step: Any) -> None:
    call = getattr(owner, name)

    def stepping(*args: Any, **kwargs: Any) -> Any:
        step()
        result = call(*args, **kwargs)
        step()
        return result

    patch.setattr(owner, name, stepping)


def frames_fold() -> StreamFold[str]:
    """A fold that writes the texts of the frames as rows."""

    def frame(store: Store, table: str, entries: list[str]) -> Any:
        import polars as pl

        return pl.DataFrame({"text": entries}).with_columns(event_at=pl.lit(store.now()))

    return StreamFold(STREAM, TABLE, bytes.decode, frame)


def frames_in(store: Store) -> list[str]:
    """All frames that have been folded, sorted."""
    if not store.tables.exists(TABLE):
        return []
    return sorted(store.tables.scan(TABLE).collect()["text"].to_list())


def _home_urls(home: Path) -> StoreUrls:
    return StoreUrls(
        home=home, records=str(home / "everloop.db"), objects=str(home / "objects"), tables=str(home / "tables")
    )


# -- functions for processes that are killed

_PROCESSES = multiprocessing.get_context("forkserver")
# Each process is a fork of one that has imported all this, which takes longer than most of them live.
_PROCESSES.set_forkserver_preload([__name__, "polars", "deltalake", "obstore", "psycopg"])


def _start(environment: Mapping[str, str], function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    process = _PROCESSES.Process(target=_call, args=({**os.environ, **environment}, function, arguments))
    process.start()
    return process


def _call(environment: Mapping[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def _killed_writer(place: LogPlace, name: str, seconds: float) -> list[str]:
    """Start a writer and kill it. Returns the frames for which `append` had returned by then."""
    reading, writing = _PROCESSES.Pipe(duplex=False)
    process = _start(place.environment, write_until_killed, str(place.writers), name, writing)
    writing.close()
    with reading, os.fdopen(os.dup(reading.fileno()), "rb") as pipe:
        first = pipe.readline().decode()
        sleep(seconds)
        process.kill()
        lines = (first + pipe.read().decode()).splitlines(keepends=True)
    process.join()
    return [line[:-1] for line in lines if line.endswith("\n")]


def write_until_killed(home: str, name: str, pipe: Connection) -> None:
    """Append frames, and write each one to the pipe after it was appended, until this process is killed."""
    with open_urls(_home_urls(Path(home))) as store:
        sink = open_sink(store, STREAM)
        number = 0
        while True:
            text = f"{name}-{number}"
            sink.append(text.encode())
            os.write(pipe.fileno(), f"{text}\n".encode())
            number += 1
            if number % 50 == 0:
                sleep(0.005)


def _killed_fold(place: LogPlace, point: int) -> None:
    process = _start({}, fold_until_killed, place.places, point)
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)


def fold_until_killed(urls: StoreUrls, point: int) -> None:
    """Fold, and kill this process at the n-th step, if the fold has that many."""
    from everloop.prediction_log import segment_folding

    left = point

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    with open_urls(urls) as store, pytest.MonkeyPatch.context() as patch:
        _step_around(patch, type(store.tables), "append", step)
        _step_around(patch, Path, "unlink", step)
        _step_around(patch, segment_folding._Folding, "_delete", step)
        frames_fold().run(store)


def write_and_die(place: LogPlace, name: str, point: int) -> list[str]:
    """Append in a forked child that is killed at the n-th step of writing and shipping.

    Only for sinks whose libraries survive a fork.

    Returns:
        The frames for which `append` had returned by then.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            _write_and_die(place, name, point, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    os.waitpid(child, 0)
    return lines


def _write_and_die(place: LogPlace, name: str, point: int, pipe: int) -> None:
    left = point
    guard = threading.Lock()

    def step() -> None:
        nonlocal left
        with guard:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    patch = pytest.MonkeyPatch()
    for owner, method in ((Journal, "append"), (Journal, "_begin"), (Journal, "close"), (Path, "unlink")):
        _step_around(patch, owner, method, step)
    with place.sink() as sink:
        if isinstance(sink, ShippingSink):
            _step_around(patch, sink._store, "put", step)
        for number in range(8):
            text = f"{name}-{number}"
            sink.append(text.encode())
            os.write(pipe, f"{text}\n".encode())
            sleep(0.01)
    os._exit(0)


__all__ = ["LogPlace", "LogSinkSuite", "frames_fold", "frames_in", "write_and_die"]
