"""Many writers on one PostgreSQL: they do not wait for each other needlessly, and events keep their order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from tests.fixtures.suspended_clients import suspended_clients

from everloop.errors import ConflictError, EverloopError, UnavailableError, UsageError
from everloop.records import Alias, ModelVersion, Point, Run
from everloop.stores import SystemClock, new_id
from everloop.stores.records.postgres import PostgresRecords
from everloop.stores.records.postgres_pool import ConnectionPool
from everloop.testing.stores import START

Open = Callable[..., PostgresRecords]


@pytest.fixture
def connect(postgres_url: str) -> Iterator[Open]:
    opened: list[PostgresRecords] = []

    def open_records(project: str = "p") -> PostgresRecords:
        opened.append(PostgresRecords(postgres_url, project=project, actor="a", clock=SystemClock()))
        return opened[-1]

    yield open_records
    for one in opened:
        one.close()


def new_run(project: str = "p", **fields: Any) -> Run:
    now = SystemClock().now()
    return Run(id=new_id(now), project=project, created_at=now, started_at=now, name="r", **fields)


def in_thread(work: Callable[[], object], wait_s: float = 20.0) -> None:
    """Run in another thread, and fail if it does not end in time."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(wait_s)
    assert not thread.is_alive(), "it waits for another transaction"
    if failed:
        raise failed[0]


def backends(records: PostgresRecords) -> list[int]:
    rows = records.database.read(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'everloop' AND pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )
    return [row[0] for row in rows]


def test_writers_of_different_parts_do_not_wait_for_each_other(connect: Open) -> None:
    records, run = connect(), new_run()
    # Only writers of names that no record has had before wait for each other.
    records.put(new_run(params={"lr": 1}))
    records.for_project("q").put(new_run("q"))
    with records.transaction(run.id):
        records.put(run)
        in_thread(lambda: records.put(new_run(params={"lr": 1})))
        in_thread(lambda: records.append_points("s", [Point(key="loss", value=1.0, step=0, at=START)]))
        in_thread(lambda: records.for_project("q").put(new_run("q")))
        in_thread(lambda: records.append_event("x", "run", "y"))
    assert {event.verb for event in records.events_since(0)} == {"created", "x"}


@pytest.mark.parametrize("parts", [(), ("same",)])
def test_a_transaction_excludes_those_that_use_the_same_parts(connect: Open, parts: tuple[str, ...]) -> None:
    records, order = connect(), []
    begun, entered = threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        with records.transaction("same", "more"):
            order.append("second")
        entered.set()

    with records.transaction(*parts):
        thread = threading.Thread(target=other)
        thread.start()
        begun.wait(10)
        assert not entered.wait(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_check_of_everything_excludes_all_writers(connect: Open) -> None:
    records = connect()
    done = threading.Event()
    with records.database.transaction():
        thread = threading.Thread(target=lambda: (records.put(new_run()), done.set()))
        thread.start()
        assert not done.wait(0.3)
    thread.join(10)
    assert done.is_set()


def test_an_inner_block_that_fails_takes_its_events_and_locks_with_it(connect: Open) -> None:
    records, run = connect(), new_run()
    with records.transaction(run.id):
        records.put(run)
        with suppress(ZeroDivisionError), records.transaction("inner"):
            records.append_event("lost", "run", "x")
            # Reading numbers the events that wait, also the one of the outer block.
            assert [event.verb for event in records.events_since(0)] == ["created", "lost"]
            raise ZeroDivisionError
        assert [event.verb for event in records.events_since(0)] == ["created"]
        in_thread(lambda: records.append_points("inner", [Point(key="loss", value=1.0, step=0, at=START)]))
    assert [event.verb for event in records.events_since(0)] == ["created"]


@pytest.mark.slow
def test_many_updates_of_one_record_lose_nothing(connect: Open) -> None:
    records, run = connect(), new_run()
    records.put(run)

    def count(_: int) -> None:
        while True:
            found = records.get(Run, run.id)
            with suppress(ConflictError):
                records.update(replace(found, metrics={"n": found.metrics.get("n", 0.0) + 1}))
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    found = records.get(Run, run.id)
    assert found.metrics["n"] == 40
    assert found.revision == 40
    assert len(records.history(Run, run.id)) == 41
    assert len(records.events_since(0)) == 41


def test_only_one_of_many_gets_a_key(connect: Open) -> None:
    records = connect()

    def create(number: int) -> bool:
        alias = Alias(
            id=new_id(START), project="p", created_at=START, model="m", name="champion", version=f"m@{number}"
        )
        try:
            records.put(alias)
        except EverloopError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(24))) == 1
    assert len(records.find(Alias)) == 1


@pytest.mark.slow
def test_new_names_in_any_order_never_wait_in_a_circle(connect: Open) -> None:
    records = connect()

    def write(number: int) -> None:
        names = [f"m{(number // 2 * 7 + k) % 60}" for k in range(20)]
        if number % 2:
            names.reverse()
        records.put(*(new_run(metrics={name: 1.0}) for name in names))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    assert len(records.find(Run)) == 320


def _write_forever(url: str, seed: int) -> None:
    import random

    source = random.Random(seed)
    records = PostgresRecords(url, project="p", actor=f"w{seed}", clock=SystemClock())
    number = 0
    while True:
        run = new_run()
        with suppress(EverloopError), records.transaction(run.id):
            records.put(run)
            if source.random() < 0.3:
                # Some get their numbers early and then take long.
                records.last_event()
            time.sleep(source.random() / 200)
            records.append_event("logged", "run", str(number))
            if source.random() < 0.1:
                raise EverloopError("rolled back")
        number += 1


@pytest.mark.slow
def test_no_event_appears_behind_one_that_was_seen(connect: Open, postgres_url: str) -> None:
    """While many processes write, roll back and are killed, as are their connections."""
    reader = connect()
    children = []

    def start(seed: int) -> None:
        child = os.fork()
        if child == 0:
            try:
                _write_forever(postgres_url, seed)
            finally:
                os._exit(1)
        children.append(child)

    for seed in range(6):
        start(seed)
    seen: list[int] = []
    try:
        ends = time.monotonic() + 30
        kills = 0
        while time.monotonic() < ends and kills < 6:
            after = seen[-1] if seen else 0
            seen += [event.seq for event in reader.events_since(after)]
            if len(seen) // 25 > kills:
                kills += 1
                if kills % 2:
                    child = children.pop(0)
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    start(100 + kills)
                else:
                    for pid in backends(reader)[:2]:
                        reader.database.read("SELECT pg_terminate_backend(?)", (pid,))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    in_thread(lambda: reader.append_event("last", "run", "x"))
    seen += [event.seq for event in reader.events_since(seen[-1])]
    every = [event.seq for event in reader.events_since(0, limit=10**6)]
    assert kills == 6
    assert seen == every
    assert all(first < second for first, second in pairwise(seen))
    # Each run's event and the one that follows in its transaction are there, or neither.
    events = reader.events_since(0, limit=10**6)
    assert sum(event.verb == "created" for event in events) == sum(event.verb == "logged" for event in events)
    assert len(reader.find(Run)) == sum(event.verb == "created" for event in events)


@pytest.mark.slow
def test_a_waiting_client_is_notified(connect: Open) -> None:
    waiting, writing = connect(), connect()
    waiting.wait_for_event(0, 0.5)
    taken = []
    for number in range(3):
        since = waiting.last_event()
        timer = threading.Timer(0.1, lambda number=number: writing.append_event("x", "run", str(number)))
        timer.start()
        begun = time.monotonic()
        assert waiting.wait_for_event(since, 30) > since
        taken.append(time.monotonic() - begun)
        timer.join()
    # Polling alone would take up to a second each time.
    assert min(taken) < 0.6


def test_events_of_other_projects_do_not_end_a_wait(connect: Open) -> None:
    records = connect()
    records.for_project("q").append_event("x", "run", "y")
    timer = threading.Timer(0.1, lambda: records.for_project("q").append_event("x", "run", "y"))
    timer.start()
    assert records.wait_for_event(0, 0.4) == 0
    timer.join()


def test_a_wait_survives_the_loss_of_all_connections(connect: Open) -> None:
    waiting, writing = connect(), connect()
    waiting.wait_for_event(0, 0.3)
    for pid in backends(writing):
        writing.database.read("SELECT pg_terminate_backend(?)", (pid,))
    timer = threading.Timer(0.2, lambda: writing.append_event("x", "run", "y"))
    timer.start()
    assert waiting.wait_for_event(0, 30) > 0
    timer.join()


def test_many_threads_share_few_connections(postgres_url: str, monkeypatch: pytest.MonkeyPatch, connect: Open) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_CONNECTIONS", "3")
    records = connect()
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda _: records.put(new_run()), range(48)))
    assert len(records.find(Run)) == 48
    # Connections of earlier tests may still be closing.
    ends = time.monotonic() + 10
    while len(backends(records)) > 2 and time.monotonic() < ends:
        time.sleep(0.1)
    assert len(backends(records)) <= 2


@pytest.mark.parametrize("text", ["0", "-1", "many", "1001", "٣", "9" * 5000])
def test_a_wrong_limit_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_CONNECTIONS", text)
    with pytest.raises(UsageError, match="not a number of connections"):
        ConnectionPool(lambda: pytest.fail("nothing is opened"))


def test_a_pool_that_stays_empty_is_an_error(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_POSTGRES_CONNECTIONS", "1")
    monkeypatch.setattr("everloop.stores.records.postgres_pool.WAIT_S", 0.2)
    records = connect()
    with records.transaction(), pytest.raises(UnavailableError, match="All 1 connections"):
        in_thread(records.last_event)
    assert records.last_event() == 0


@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_points_are_the_same_by_copy_and_by_insert(connect: Open, count: int) -> None:
    records = connect()
    values = [float("nan"), float("inf"), -0.0, 1e-320, -1.5]
    rows = [(f"m{step % 3}", -step, step * 10**6, values[step % 5]) for step in range(count)]
    records.append_rows("s", rows)
    found = [(p.key, p.step, repr(p.value + 0.0)) for p in records.read_points("s")]
    assert sorted(found) == sorted((key, step, repr(value + 0.0)) for key, step, _, value in rows)


def test_a_point_that_does_not_fit_is_refused_with_all_others(connect: Open) -> None:
    records = connect()
    rows = [("loss", step, 0, 1.0) for step in range(50)]
    with pytest.raises(UsageError):
        records.append_rows("s", [*rows, ("loss", 2**63, 0, 1.0)])
    assert records.read_points("s") == []


def test_a_version_is_still_numbered_once(connect: Open) -> None:
    """Blocks that read, decide and write exclude each other, also from single writes."""
    records = connect()

    def register(_: int) -> None:
        with records.transaction():
            number = 1 + max((one.version for one in records.find(ModelVersion)), default=0)
            records.put(
                ModelVersion(
                    id=new_id(START),
                    project="p",
                    created_at=START,
                    model="m",
                    version=number,
                    package=f"sha256:{number:064x}",
                )
            )

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(register, range(18)))
    assert sorted(one.version for one in records.find(ModelVersion)) == list(range(1, 19))


@pytest.mark.slow
def test_a_suspended_transaction_does_not_hold_the_others_up(connect: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.stores.records.postgres_connections.IDLE_TRANSACTION_S", 1)
    suspended, other = connect(), connect()
    run = new_run()
    suspended.put(run)
    known = suspended.get(Run, run.id)

    def be_suspended() -> None:
        with suspended.transaction():
            suspended.update(replace(known, name="suspended"))
            # It waits for the lock of the record until the server has ended the transaction that holds it.
            in_thread(lambda: other.update(replace(known, name="other")))
            suspended.put(new_run())

    with pytest.raises(UnavailableError):
        be_suspended()
    assert [one.name for one in suspended.find(Run)] == ["other"]


@pytest.mark.slow
@pytest.mark.parametrize("work", ["points", "record", "large"])
def test_a_process_that_is_suspended_at_any_moment_does_not_hold_the_others_up(
    connect: Open, postgres_url: str, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    monkeypatch.setattr("everloop.stores.records.postgres_connections.IDLE_TRANSACTION_S", 1)
    records, runs = connect(), [new_run() for _ in range(100)]
    # The names of parameters are known, so that no run waits for another one.
    for run in [new_run(params={f"p{n}": 0 for n in range(20)}), *runs]:
        records.put(run)

    def write(records: PostgresRecords, run: Run) -> None:
        if work == "points":
            records.append_points(run.id, [Point(key="loss", value=n, step=n, at=START) for n in range(50)])
        elif work == "large":
            # Larger than the buffers between the two processes, so it is sent in parts.
            records.update(replace(records.get(Run, run.id), error="e" * 500_000))
        else:
            known = records.get(Run, run.id)
            records.update(replace(known, params={**known.params, **{f"p{n}": known.revision for n in range(20)}}))

    def be_suspended(number: int, begin: Callable[[], None]) -> None:
        own = PostgresRecords(postgres_url, project="p", actor="a", clock=SystemClock())
        own.get(Run, runs[number].id)
        begin()
        write(own, runs[number])

    with suspended_clients(be_suspended) as numbers:
        assert len(numbers) > 5
        for number in numbers:
            in_thread(lambda number=number: write(records, runs[number]))  # type: ignore[misc]
