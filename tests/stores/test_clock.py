from __future__ import annotations

import os
import re
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import everloop
from everloop.errors import ConflictError, CorruptionError, NotFoundError, StoreVersionError, UsageError
from everloop.stores import FixedClock, SharedClock, SystemClock, new_id
from everloop.stores.clock import micros, moment_of

MOMENT = datetime(2013, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.mark.slow
def test_only_the_clock_asks_the_system_for_the_date() -> None:
    asks = re.compile(r"\b(datetime\.(now|utcnow|today)|date\.today|time\.(time|time_ns|localtime|gmtime))\s*\(")
    source = Path(everloop.__file__).parent
    guilty = [
        f"{path.relative_to(source)}:{number}: {line.strip()}"
        for path in source.rglob("*.py")
        if path != source / "stores" / "clock.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if asks.search(line)
    ]
    assert guilty == [], "ask the store for the time: store.now()"
    assert asks.search((source / "stores" / "clock.py").read_text())


@given(st.datetimes(timezones=st.just(UTC)))
def test_microseconds_and_back(moment: datetime) -> None:
    assert moment_of(micros(moment)) == moment


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(UsageError, match="timezone"):
        micros(datetime(2024, 1, 1))
    with pytest.raises(UsageError, match="timezone"):
        new_id(datetime(2024, 1, 1))


def test_the_system_clock_shows_the_systems_time() -> None:
    clock = SystemClock()
    before = datetime.now(UTC)
    assert before <= clock.now() <= datetime.now(UTC)
    assert clock.now().tzinfo is UTC
    assert not clock.simulated


def test_a_fixed_clock_shows_one_moment_in_utc() -> None:
    clock = FixedClock(MOMENT.astimezone(timezone(timedelta(hours=5))))
    assert clock.now() == MOMENT
    assert clock.now().tzinfo is UTC
    assert clock.simulated


def test_a_shared_clock_stands_still_and_is_moved_for_all(tmp_path: Path) -> None:
    first = SharedClock.create(tmp_path / "clock", MOMENT)
    second = SharedClock(tmp_path / "clock")
    assert first.now() == second.now() == MOMENT
    assert (tmp_path / "clock").stat().st_size == 24
    first.set(MOMENT + timedelta(days=1))
    assert second.now() == MOMENT + timedelta(days=1)
    second.set(second.now())
    assert first.now() == MOMENT + timedelta(days=1)
    assert first.simulated
    assert not first.ticking


def test_a_shared_clock_never_goes_back(tmp_path: Path) -> None:
    clock = SharedClock.create(tmp_path / "clock", MOMENT)
    with pytest.raises(ConflictError, match="cannot go back"):
        clock.set(MOMENT - timedelta(microseconds=1))
    with pytest.raises(ConflictError):
        SharedClock.create(tmp_path / "clock", MOMENT - timedelta(days=1))
    assert clock.now() == MOMENT


def test_a_shared_clock_can_tick_and_stop(tmp_path: Path) -> None:
    clock = SharedClock.create(tmp_path / "clock", MOMENT)
    clock.tick()
    assert clock.ticking
    first = clock.now()
    while clock.now() == first:
        pass
    assert MOMENT <= first < clock.now() < MOMENT + timedelta(minutes=1)
    clock.set(MOMENT + timedelta(days=1))
    assert clock.ticking
    assert MOMENT + timedelta(days=1) <= clock.now() < MOMENT + timedelta(days=1, minutes=1)
    clock.stop()
    assert clock.now() == clock.now() == SharedClock(tmp_path / "clock").now()


def test_readers_of_a_shared_clock_see_whole_times_only(tmp_path: Path) -> None:
    clock = SharedClock.create(tmp_path / "clock", MOMENT)
    steps = [MOMENT + timedelta(days=number * 41, microseconds=number * 977) for number in range(300)]
    allowed = set(steps)
    done = threading.Event()

    def look() -> list[datetime]:
        mine = SharedClock(tmp_path / "clock")
        seen = [mine.now()]
        while not done.is_set():
            seen.append(mine.now())
        return seen

    with ThreadPoolExecutor(2) as pool:
        looks = [pool.submit(look) for _ in range(2)]
        for moment in steps:
            clock.set(moment)
        done.set()
        for seen in (look.result() for look in looks):
            assert set(seen) <= allowed
            assert seen == sorted(seen)


def test_a_clock_that_is_missing_damaged_or_newer(tmp_path: Path) -> None:
    path = tmp_path / "clock"
    with pytest.raises(NotFoundError):
        SharedClock(path)
    SharedClock.create(path, MOMENT)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\x02\x00" + whole[6:])
    with pytest.raises(StoreVersionError, match="format 2"):
        SharedClock(path)
    for damaged in (b"", whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"nonsense" * 3):
        path.unlink()
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            SharedClock(path)


@given(st.lists(st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1), timezones=st.just(UTC)), max_size=20))
def test_ids_are_version_7_and_sort_by_time(moments: list[datetime]) -> None:
    ids = [uuid.UUID(new_id(moment)) for moment in sorted(moments)]
    assert all(one.version == 7 and one.variant == uuid.RFC_4122 for one in ids)
    assert all(one.int >> 80 == micros(moment) // 1000 for one, moment in zip(ids, sorted(moments), strict=True)), (
        "the first 48 bits are milliseconds"
    )
    assert [str(one) for one in ids] == sorted(str(one) for one in ids)


def test_ids_of_one_moment_increase() -> None:
    ids = [new_id(MOMENT) for _ in range(10_000)]
    assert all(one < other for one, other in pairwise(ids))


def test_ids_of_many_threads_differ() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = [one for batch in pool.map(lambda _: [new_id(MOMENT) for _ in range(500)], range(8)) for one in batch]
    assert len(set(ids)) == 4000


def test_ids_after_a_fork_differ() -> None:
    new_id(MOMENT)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "".join(new_id(MOMENT) for _ in range(50)).encode())
        os._exit(0)
    mine = {new_id(MOMENT) for _ in range(50)}
    os.waitpid(child, 0)
    theirs = os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    assert len(theirs) == 50 * 36
    assert not mine & {theirs[at : at + 36] for at in range(0, len(theirs), 36)}
