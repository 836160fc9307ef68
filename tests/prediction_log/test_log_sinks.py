"""Every log sink: the journal of this host, and segments in a folder, in a bucket and in PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

pytest.register_assert_rewrite("everloop.testing.log_sinks")

from everloop.errors import CorruptionError, InsufficientStorageError, UnavailableError, UsageError  # noqa: E402
from everloop.prediction_log.log_sinks import ShippingOptions, new_instance  # noqa: E402
from everloop.prediction_log.prediction_log import Group, PredictionLog, fold_predictions, stream_name  # noqa: E402
from everloop.prediction_log.segment_stores import open_segments  # noqa: E402
from everloop.prediction_log.segments import Segment, shown  # noqa: E402
from everloop.prediction_log.shipping import ShippingSink, ship_leftovers  # noqa: E402
from everloop.stores.home import StoreUrls, open_urls  # noqa: E402
from everloop.stores.journals import Journal  # noqa: E402
from everloop.testing.log_sinks import STREAM, LogPlace, LogSinkSuite, frames_in, write_and_die  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop.prediction_log.segments import SegmentStore
    from everloop.stores import Store


def places_in(home: Path, **more: Any) -> StoreUrls:
    parts: dict[str, Any] = {"records": str(home / "everloop.db"), "objects": str(home / "objects")}
    return StoreUrls(home=home, **{**parts, "tables": str(home / "tables"), **more})


def shipped(tmp_path: Path, where: str, **places: Any) -> LogPlace:
    spool = tmp_path / "spool"
    environment = {"EVERLOOP_LOG": where, "EVERLOOP_LOG_FOLDER": str(spool), "EVERLOOP_LOG_SEGMENT_S": "0.05"}
    home = tmp_path / "home"
    return LogPlace(places=places_in(home, **places), writers=tmp_path / "writers", environment=environment)


class TestJournal(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> LogPlace:
        home = tmp_path / "home"
        return LogPlace(places=places_in(home), writers=home, environment={})

    @pytest.mark.slow
    def test_killed_at_every_step(self, place: LogPlace) -> None:
        killed_at_every_step(place)


class TestFolder(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path) -> LogPlace:
        place = shipped(tmp_path, str(tmp_path / "home"))
        environment = {**place.environment}
        # What instances leave in the folder itself, also the one who folds it can ship.
        del environment["EVERLOOP_LOG_FOLDER"]
        return LogPlace(places=place.places, writers=place.writers, environment=environment)

    @pytest.mark.slow
    def test_killed_at_every_step(self, place: LogPlace) -> None:
        killed_at_every_step(place)


class TestPostgres(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path, postgres_url: str) -> LogPlace:
        return shipped(tmp_path, postgres_url, records=postgres_url)


class TestBucket(LogSinkSuite):
    @pytest.fixture
    def place(self, tmp_path: Path, bucket: str) -> LogPlace:
        return shipped(tmp_path, bucket, log=bucket)


class TestWaiting(LogSinkSuite):
    """Answers that wait for the store. Their segments are folded as all others are."""

    test_folds_killed_at_random_lose_and_duplicate_nothing = None  # type: ignore[assignment]

    @pytest.fixture
    def place(self, tmp_path: Path) -> LogPlace:
        place = shipped(tmp_path, str(tmp_path / "home"))
        environment = {**place.environment, "EVERLOOP_LOG_DURABLE": "store"}
        return LogPlace(places=place.places, writers=place.writers, environment=environment)


@pytest.fixture
def bucket(s3: str, tmp_path: Path) -> str:
    import boto3

    name = f"log-{abs(hash(tmp_path)):x}"
    boto3.client("s3", endpoint_url=s3, region_name="us-east-1").create_bucket(Bucket=name)
    open_segments.cache_clear()
    return f"s3://{name}/team"


def killed_at_every_step(place: LogPlace) -> None:
    acknowledged: list[str] = []
    for point in range(1, 40):
        acknowledged += write_and_die(place, f"p{point}", point)
    with place.sink():
        pass
    found = place.fold()
    assert set(acknowledged) <= set(found)
    assert len(set(found)) == len(found)
    assert len(acknowledged) > 100


class Gate:
    """A segment store that answers only while it is open."""

    def __init__(self, store: SegmentStore) -> None:
        self.store = store
        self.opened = True
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> Any:
            self.asked += 1
            if not self.opened:
                raise UnavailableError("The gate is shut.")
            return getattr(self.store, name)(*given)

        return call


@pytest.fixture
def options(tmp_path: Path) -> ShippingOptions:
    home = tmp_path / "home"
    return ShippingOptions(
        where=str(home), folder=tmp_path / "spool", segment_s=0.05, segment_bytes=4096, backlog_bytes=64 << 10
    )


def fold(tmp_path: Path) -> list[str]:
    return LogPlace(places=places_in(tmp_path / "home"), writers=tmp_path, environment={}).fold()


def wait_for(look: Callable[[], Any]) -> None:
    until = monotonic() + 30
    while not look():
        assert monotonic() < until, "it did not come"
        sleep(0.01)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_store_that_does_not_answer_bounds_the_disk_and_loses_nothing(
    tmp_path: Path, options: ShippingOptions
) -> None:
    gate: Any = Gate(open_segments(options.where))
    gate.opened = False
    sink = ShippingSink(options, STREAM, gate)
    taken: list[str] = []
    refused = 0
    for number in range(500):
        text = f"{number:03d}" + "x" * 1000
        try:
            sink.append(text.encode())
            taken.append(text)
        except UnavailableError:
            refused += 1
    assert 60 <= len(taken) <= 80
    assert refused == 500 - len(taken)
    assert disk_bytes(options.folder) < options.backlog_bytes + 8192
    assert sink.state().backlog_bytes > options.backlog_bytes
    # Another process on the same disk, as a worker that was started again and again would be, adds nothing to it.
    other = ShippingSink(options, STREAM, gate)
    wait_for(lambda: other._others)
    with pytest.raises(UnavailableError, match="wait for the log's store"):
        other.append(b"one more")
    gate.opened = True
    wait_for(lambda: sink.state().backlog_bytes == 0)
    sink.append(b"again")
    sink.close()
    other.close()
    assert sink.state().failures > 0
    assert fold(tmp_path) == sorted([*taken, "again"])
    assert disk_bytes(options.folder) == 0


def test_a_store_that_does_not_answer_is_not_hammered(options: ShippingOptions) -> None:
    gate: Any = Gate(open_segments(options.where))
    gate.opened = False
    sink = ShippingSink(replace(options, grace_s=0.0), STREAM, gate)
    for _ in range(200):
        sink.append(b"x" * 100)
        sleep(0.002)
    assert gate.asked < 20
    sink.close()


@pytest.mark.slow
def test_an_answer_that_the_store_must_have_is_refused_at_once_while_it_does_not_answer(
    tmp_path: Path, options: ShippingOptions
) -> None:
    gate: Any = Gate(open_segments(options.where))
    sink = ShippingSink(replace(options, durable="store", confirm_s=0.5), STREAM, gate)
    sink.append(b"one")
    assert fold(tmp_path) == ["one"]
    gate.opened = False
    with pytest.raises(UnavailableError, match="has not confirmed"):
        sink.append(b"late")
    with pytest.raises(UnavailableError, match="does not answer"):
        sink.append(b"never")
    # Nobody waits for a shadow's score.
    sink.append(b"shadow", wait=False)
    gate.opened = True
    wait_for(lambda: not sink._failing)
    sink.append(b"two")
    sink.close()
    assert fold(tmp_path) == ["late", "one", "shadow", "two"]


def test_answers_that_wait_share_segments(tmp_path: Path, options: ShippingOptions) -> None:
    class Slow(Gate):
        def put(self, segment: Segment, data: bytes) -> None:
            sleep(0.05)
            self.store.put(segment, data)

    slow: Any = Slow(open_segments(options.where))
    sink = ShippingSink(replace(options, durable="store", segment_bytes=1 << 20), STREAM, slow)
    threads = [
        threading.Thread(target=lambda at=at: [sink.append(f"{at}-{n}".encode()) for n in range(5)]) for at in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    assert sink.state().shipped < 50
    assert len(fold(tmp_path)) == 100


def test_a_damaged_segment_holds_up_its_instance_only(tmp_path: Path, options: ShippingOptions) -> None:
    for name in ("a", "b"):
        sink = ShippingSink(options, STREAM)
        for number in range(3):
            sink.append(f"{name}{number}".encode() + b"x" * 4096)
        sink.close()
    segments = open_segments(options.where)
    found = segments.find(STREAM)
    assert [segment.number for segment in found] == [0, 1, 2] * 2
    damaged = Path(options.where) / found[1].key
    whole = damaged.read_bytes()
    damaged.chmod(0o644)
    damaged.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    for _ in range(2):
        with pytest.raises(CorruptionError, match=found[1].key):
            fold(tmp_path)
    with open_urls(places_in(tmp_path / "home")) as store:
        assert len(frames_in(store)) == 4
    assert segments.find(STREAM) == [found[1], found[2]]
    damaged.write_bytes(whole)
    assert len(fold(tmp_path)) == 6
    assert segments.find(STREAM) == []


def test_frames_that_make_no_rows_hold_up_their_instance_only(store: Store, options: ShippingOptions) -> None:
    """Whoever can write to the store can put such a segment there."""
    inputs = msgspec.Raw(msgspec.msgpack.encode({"x": "float"}))
    stream = stream_name(store, "predictions", "delays")
    for inputs_of, rows in (
        (inputs, [(1.0,)]),
        (msgspec.Raw(b"\xa1x"), [(1.0,)]),
        (inputs, [("text",)]),
        (inputs, [()]),
    ):
        log = PredictionLog(
            store, "delays", ShippingSink(replace(options, where=str(store.home), segment_s=60.0), stream)
        )
        for number in range(2):
            log.append(
                [
                    Group(
                        request=f"{number:036d}",
                        arrived=number,
                        seconds=0.1,
                        version="delays@1",
                        role="champion",
                        inputs=inputs if number else inputs_of,
                        positions=None,
                        entities=None,
                        events=None,
                        scores=[0.5],
                        labels=None,
                        rows=[(1.0,)] if number else rows,
                    )
                ]
            )
        log.close()
    for _ in range(2):
        with pytest.raises(CorruptionError, match="makes no rows"):
            fold_predictions(store, "delays")
    assert store.tables.scan("predictions/delays").collect().height == 2
    assert len(open_segments(str(store.home)).find(stream)) == 3


def test_what_follows_a_segment_that_was_deleted_waits_an_hour(
    tmp_path: Path, options: ShippingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ShippingSink(options, STREAM)
    for number in range(3):
        sink.append(f"{number}".encode() + b"x" * 4096)
    sink.close()
    segments = open_segments(options.where)
    segments.delete(segments.find(STREAM)[1])
    assert len(fold(tmp_path)) == 1
    monkeypatch.setattr("everloop.prediction_log.segment_folding.GAP_WAIT", timedelta(0))
    assert len(fold(tmp_path)) == 2


def test_a_leftover_journal_with_a_torn_or_damaged_end(tmp_path: Path, options: ShippingOptions) -> None:
    folder = options.folder / STREAM / new_instance()
    for number, cut in enumerate(("torn", "damaged")):
        with Journal.create(folder, f"{number:012d}") as journal:
            for frame in range(3):
                journal.append(f"{cut}{frame}".encode())
        data = bytearray(journal.path.read_bytes())
        journal.path.write_bytes(data[:-2] if cut == "torn" else bytes([*data[:-20], data[-20] ^ 1, *data[-19:]]))
    sink = ShippingSink(options, STREAM)
    sink.close()
    assert fold(tmp_path) == ["damaged0", "torn0", "torn1"]
    assert [path.suffix for path in folder.iterdir()] == [".damaged"]


def test_what_a_living_instance_has_is_left_alone(options: ShippingOptions) -> None:
    sink = ShippingSink(replace(options, segment_s=60.0), STREAM)
    sink.append(b"x")
    spool = options.folder / STREAM
    assert ship_leftovers(open_segments(options.where), spool) == 0
    # So is that of another host whose locks are not seen here, while it shows life.
    other = spool / f"{new_instance().partition('.')[0]}.another-kernel"
    Journal.create(other, f"{0:012d}").close()
    assert ship_leftovers(open_segments(options.where), spool) == 0
    for path in other.iterdir():
        os.utime(path, (0, 0))
    assert ship_leftovers(open_segments(options.where), spool) == 1
    assert not other.exists()
    sink.close()


def test_a_folder_among_temporary_files_that_another_user_made_is_refused(
    tmp_path: Path, options: ShippingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="belongs to another user"):
        ShippingSink(replace(options, folder=link), STREAM)
    ShippingSink(options, STREAM).close()
    assert options.folder.stat().st_mode & 0o777 == 0o700


FULL = """
import sys
from pathlib import Path
from everloop.errors import InsufficientStorageError
from everloop.prediction_log.log_sinks import ShippingOptions
from everloop.prediction_log.shipping import ShippingSink

small, where = map(Path, sys.argv[1:3])
options = ShippingOptions(where=str(where), folder=small / "spool", segment_s=3600.0, segment_bytes=16384)
sink = ShippingSink(options, "frames")
taken, refused, filler = [], 0, small / "filler"
for number in range(60):
    if number == 20:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
    if number == 40:
        filler.unlink()
    try:
        sink.append(f"{number:02d}".encode() + b"y" * 3000)
        taken.append(number)
    except InsufficientStorageError:
        refused += 1
sink.close()
print(len(taken), refused, taken[-1])
"""


def test_a_journal_is_shipped_although_there_is_no_space_to_begin_the_next(
    tmp_path: Path, options: ShippingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ShippingSink(replace(options, segment_s=3600.0), STREAM)

    def full() -> Journal:
        raise InsufficientStorageError("No space left.")

    with monkeypatch.context() as patch:
        patch.setattr(sink, "_begin", full)
        sink.append(b"x" * 5000)
        wait_for(lambda: sink.state().backlog_bytes == 0)
        with pytest.raises(InsufficientStorageError):
            sink.append(b"y")
    assert fold(tmp_path) == ["x" * 5000]
    sink.append(b"z")
    sink.append(b"x" * 5000)
    with monkeypatch.context() as patch:
        patch.setattr(sink, "_begin", full)
        sink.append(b"x" * 5000)
        sink.close()
    assert len(fold(tmp_path)) == 4


def test_a_full_disk_refuses_and_works_again_when_there_is_space(
    tmp_path: Path, small_device: Callable[[Path, str], list[str]]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    program = [sys.executable, "-W", "error", "-c", FULL, str(small), str(tmp_path / "home")]
    done = subprocess.run(
        [*small_device(small, "1m"), *program],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    taken, refused, last = map(int, done.stdout.split())
    assert refused > 10
    assert taken + refused == 60
    assert last == 59
    assert len(fold(tmp_path)) == taken


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("s3://bucket/team", "s3://bucket/team"),
        ("postgresql://ann:secret@db:5432/logs?sslmode=require", "postgresql://db/logs"),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("postgresql://ann:secret@[::1/x", "postgresql://…"),
        ("/mnt/volume", "/mnt/volume"),
    ],
)
def test_a_place_is_shown_without_what_is_secret(where: str, wanted: str) -> None:
    assert shown(where) == wanted
