"""Two runs do not do the same work at the same time: by file locks on one machine, by leases on several."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.pipeline import run_graph, trace
from everloop.pipeline.step_locks import StepLocks
from everloop.records import StepRun
from everloop.stores import open_store
from everloop.stores.leases import Leases

if TYPE_CHECKING:
    from conftest import Project
    from everloop.stores import Store

LOOP = """
    import os, time, uuid
    from pathlib import Path
    from everloop.pipeline import step

    @step
    def slow(number: int, folder: str, wait_s: float):
        Path(folder, f"call-{number}-{uuid.uuid4().hex}").touch()
        time.sleep(wait_s)
        return number * number
"""


def host(folder: Path, records: str, objects: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store as another machine opens it: the same records and objects, a home of its own."""
    folder.mkdir()
    (folder / "everloop.toml").write_text(
        f'[store]\nhome = "home"\nrecords = "{records}"\nobjects = "file://{objects}"\ntables = "file://{objects}"\n'
    )
    monkeypatch.chdir(folder)
    return open_store()


@pytest.fixture
def hosts(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "objects").mkdir()
    found = [host(tmp_path / name, postgres_url, tmp_path / "objects", monkeypatch) for name in ("one", "two")]
    yield found
    for store in found:
        store.close()


@pytest.mark.slow
def test_runs_on_two_machines_share_the_work(hosts: list[Store], project: Project, tmp_path: Path) -> None:
    project.edit(loop=LOOP)
    loop = project.load()
    found: list[Any] = []

    def run(store: Store) -> None:
        with trace() as graph:
            loop.slow.map([1, 2, 3], folder=str(tmp_path), wait_s=0.3)
        found.append(run_graph(graph, store).value("slow"))

    threads = [threading.Thread(target=run, args=(store,)) for store in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1, 4, 9], [1, 4, 9]]
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("call-*")) == ["1", "2", "3"]
    ran = hosts[0].records.find(StepRun, ("status", "=", "ran"), ("name", "prefix", "slow["))
    assert sorted(step.name for step in ran) == ["slow[0]", "slow[1]", "slow[2]"]
    assert Leases(hosts[0]).held() == []


def test_the_lease_of_a_step_is_shared_by_its_elements_and_by_no_other_run(hosts: list[Store]) -> None:
    here, there = StepLocks(hosts[0]), StepLocks(hosts[1])
    with here.hold("fp:a", "fp:whole") as first:
        with here.hold("fp:b", "fp:whole") as second, there.hold("fp:b", "fp:whole") as third:
            assert (first, second, third) == (True, True, False)
        # The first element still holds it.
        with there.hold("fp:b", "fp:whole") as held:
            assert not held
        with there.hold("fp:c", "fp:c") as other:
            assert other
    with there.hold("fp:a", "fp:whole") as later:
        assert later
    rows = hosts[0].records.database.read("SELECT name FROM leases", ())  # type: ignore[attr-defined]
    assert not rows, "no row is left for each step that ever ran"


def test_a_lease_that_is_lost_does_not_fail_the_run(hosts: list[Store]) -> None:
    with StepLocks(hosts[0]).hold("fp:a", "fp:a") as held:
        assert held
        hosts[1].records.database.write("UPDATE leases SET fence = fence + 1 WHERE name = ?", ("step:fp:a",))  # type: ignore[attr-defined]
    with StepLocks(hosts[1]).hold("fp:a", "fp:a") as taken:
        # The other holder has not released it, so it is free only when its time is over.
        assert not taken


def test_on_one_machine_a_file_lock_does(store: Store) -> None:
    with StepLocks(store).hold("fp:a", "fp:whole") as first, StepLocks(store).hold("fp:b", "fp:whole") as second:
        assert first
        assert second  # elements are locked one by one
        assert store.locked("step-a")
        with StepLocks(store).hold("fp:a", "fp:whole") as third:
            assert not third
    assert not store.locked("step-a")
    assert Leases(store).held() == []
