"""Stores that stay open until the process ends."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from everloop.records import Run
from everloop.stores import open_store, open_stores as module
from everloop.stores.open_stores import close_shared, shared_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.stores import Store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    close_shared()
    folder = tmp_path / "a home with spaces"
    monkeypatch.setenv("EVERLOOP_STORE", str(folder))
    yield folder
    close_shared()


def put(store: Store, name: str = "r") -> Run:
    run = store.new(Run, name=name, state="finished", started_at=store.now())
    store.records.put(run)
    return run


def open_files(folder: Path) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


def test_one_connection_is_shared_and_closing_does_nothing(home: Path) -> None:
    with shared_store() as first:
        run = put(first)
    with shared_store(project="other") as other:
        assert other.project == "other"
        assert other.records.find(Run) == []
    again = shared_store()
    again.as_actor("somebody").for_project("third").close()
    assert again.records.get(Run, run.id).name == "r"
    assert shared_store(actor="x").actor == "x"
    assert len([path for path in open_files(home) if path.endswith("everloop.db")]) == 1


def test_it_is_the_store_that_open_store_opens(home: Path) -> None:
    run = put(shared_store())
    with open_store() as opened:
        assert (opened.project, opened.actor) == (shared_store().project, shared_store().actor)
        assert opened.records.get(Run, run.id) == run
        later = put(opened)
    assert shared_store().records.get(Run, later.id) == later


def test_a_home_that_was_removed_or_replaced_is_opened_again(home: Path, tmp_path: Path) -> None:
    first = put(shared_store())
    shutil.rmtree(home)
    assert shared_store().records.find(Run) == []
    second = put(shared_store())
    shutil.move(home, tmp_path / "moved")
    with open_store(home) as made:
        third = put(made)
    assert [run.id for run in shared_store().records.find(Run)] == [third.id]
    assert {first.id, second.id, third.id} & {run.id for run in shared_store().records.find(Run)} == {third.id}


def test_a_home_that_gets_a_clock_is_opened_again(home: Path) -> None:
    from datetime import UTC, datetime

    assert not shared_store().clock.simulated
    moment = datetime(2020, 1, 1, tzinfo=UTC)
    with open_store() as other:
        other.simulate(moment)
    assert shared_store().now() == moment


@pytest.mark.slow
def test_few_homes_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        monkeypatch.setenv("EVERLOOP_STORE", str(tmp_path / f"{number}"))
        put(shared_store())
    gc.collect()
    assert len([path for path in open_files(tmp_path) if path.endswith("everloop.db")]) <= module._MOST
    close_shared()
    gc.collect()
    assert open_files(tmp_path) == []
    assert len(shared_store().records.find(Run)) == 1  # opened again where it is needed


def test_threads_share_it(home: Path) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                put(shared_store())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(shared_store().records.find(Run)) == 60


def test_a_forked_child_has_its_own_connections(home: Path) -> None:
    put(shared_store())
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(10):
                    put(shared_store())
                close_shared()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
        put(shared_store())
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(shared_store().records.find(Run)) == 45
    assert shared_store().records.problems() == []


def test_it_is_closed_when_the_process_ends(home: Path) -> None:
    script = "import everloop as el\nfor _ in range(3):\n    with el.start_run('r') as run: run.log(x=1.0)\n"
    subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", script], check=True)
    assert not (home / "everloop.db-wal").exists()
    with open_store() as store:
        assert [run.state for run in store.records.find(Run)] == ["finished"] * 3
