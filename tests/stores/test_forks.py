"""Forks of whole stores: records, objects, tables, clocks, families and what is removed in the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import polars as pl
import pytest

from everloop.errors import ConflictError, NotFoundError, ReadOnlyError, UsageError
from everloop.records import Artifact, ModelVersion, Point, Run, StepRun
from everloop.stores import SimulatedClock, Store, scratch_store
from everloop.stores.gc import gc
from everloop.stores.verify import verify
from everloop.testing.leaks import leaks
from everloop.testing.stores import START

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.testing.stores import ManualClock


def version(store: Store, number: int) -> ModelVersion:
    return store.new(ModelVersion, model="delays", version=number, package=f"sha256:{number:064x}")


def rows(*numbers: int) -> pl.DataFrame:
    return pl.DataFrame({"event_at": [START + timedelta(hours=one) for one in numbers], "x": list(numbers)})


def seen(store: Store, name: str = "t") -> list[int]:
    return sorted(store.tables.scan(name).collect()["x"].to_list())


@pytest.fixture
def filled(store: Store, clock: ManualClock) -> Store:
    store.records.put(version(store, 1))
    store.objects.add(b"first")
    store.tables.append("t", rows(1, 2))
    return store


def test_a_fork_shows_the_past_and_is_written_to_alone(filled: Store, clock: ManualClock) -> None:
    moment = clock.now()
    clock.advance()
    filled.records.put(version(filled, 2))
    filled.tables.append("t", rows(3))
    filled.tables.append("later", rows(1))
    with filled.fork(moment) as fork:
        assert (fork.now(), fork.read_only) == (moment, False)
        assert [one.version for one in fork.records.find(ModelVersion)] == [1]
        assert seen(fork) == [1, 2]
        assert fork.tables.names() == ["t"]
        assert not fork.tables.exists("later")
        fork.clock.set(moment + timedelta(days=1))
        fork.records.put(version(fork, 2))
        fork.records.update(replace(fork.records.get(ModelVersion, "delays@1"), state="archived"))
        fork.tables.append("t", rows(9))
        digest = fork.objects.add(b"only in the fork")
        assert fork.objects.read(digest) == b"only in the fork"
        assert fork.records.get(ModelVersion, "delays@2").created_at == moment + timedelta(days=1)
        assert seen(fork) == [1, 2, 9]
        assert seen(fork.as_of(moment)) == [1, 2]
        with pytest.raises(ReadOnlyError):
            fork.as_of(moment).objects.add(b"x")
    assert filled.records.get(ModelVersion, "delays@1").state == "registered"
    assert seen(filled) == [1, 2, 3]
    assert not filled.objects.has(digest)


def test_objects_of_the_store_are_read_through_a_fork_and_not_copied(filled: Store, tmp_path: Path) -> None:
    digest = filled.objects.add(b"first")
    problems = verify(filled).problems
    with filled.fork(filled.now()) as fork:
        assert fork.objects.add(b"first") == digest
        assert list(fork.objects.digests()) == []
        assert fork.objects.path(digest).read_bytes() == b"first"
        assert fork.objects.path(digest).is_relative_to(filled.home)
        assert fork.objects.remove(digest) is False
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "a").write_bytes(b"a")
        tree = fork.objects.add_tree(tmp_path / "tree")
        assert fork.objects.restore_tree(tree, tmp_path / "out").joinpath("a").read_bytes() == b"a"
        gc(fork, grace_s=0)
    assert filled.objects.read(digest) == b"first"
    assert verify(filled).problems == problems


def test_the_home_of_a_fork_is_its_own_and_is_removed(filled: Store) -> None:
    fork = filled.fork(filled.now())
    with fork.lock("release"):
        assert fork.locked("release")
        assert not filled.locked("release")
    assert fork.journals.is_dir()
    home = fork.home
    fork.close()
    fork.close()
    assert fork.closed
    assert not filled.closed
    assert not home.exists()
    assert not home.parent.exists()
    with pytest.raises(UsageError, match="closed"):
        fork.records.find(Run)


def test_forks_of_views_and_of_forks(filled: Store, clock: ManualClock) -> None:
    moment = clock.now()
    clock.advance()
    filled.records.put(version(filled, 2))
    with filled.as_of(moment).fork(clock.now()) as first:
        assert first.now() == moment
        assert [one.version for one in first.records.find(ModelVersion)] == [1]
        first.clock.set(clock.now())
        first.records.put(version(first, 3))
        first.tables.append("t", rows(7))
        with first.fork(clock.now()) as second:
            second.records.delete(ModelVersion, "delays@1")
            second.tables.append("t", rows(8))
            assert [one.version for one in second.records.find(ModelVersion)] == [3]
            assert seen(second) == [1, 2, 7, 8]
        with first.fork(moment) as early:
            assert [one.version for one in early.records.find(ModelVersion)] == [1]
            assert seen(early) == [1, 2]
        assert [one.version for one in first.records.find(ModelVersion)] == [1, 3]
        assert seen(first) == [1, 2, 7]


def test_projects_and_actors_of_a_fork(filled: Store) -> None:
    other = filled.for_project("trains")
    other.records.put(version(other, 5))
    with filled.fork(filled.now()) as fork:
        there = fork.for_project("trains").as_actor("replay:weekly")
        assert there.records.get(ModelVersion, "delays@5").project == "trains"
        there.records.put(version(there, 6))
        events = there.records.events_since(0)
        assert [event.actor for event in events] == ["user:ann@desk", "replay:weekly"]
        assert [event.seq for event in events] == sorted({event.seq for event in events})
        there.tables.append("t", rows(4))
        assert seen(fork) == [1, 2, 4]


def test_clocks_of_forks(filled: Store) -> None:
    with filled.fork(START) as fork:
        with pytest.raises(ConflictError, match="cannot go back"):
            fork.clock.set(START - timedelta(seconds=1))
        clock = fork.simulate(START + timedelta(days=2))
        fork.records.put(version(fork, 9))
        fork.tables.append("t", rows(5))
        assert fork.records.get(ModelVersion, "delays@9").created_at == START + timedelta(days=2)
        assert fork.tables.scan("t").collect()["arrived_at"].max() == clock.now()
    own = SimulatedClock(START + timedelta(days=5))
    with filled.fork(START, clock=own) as fork:
        assert fork.now() == own.now()


def result(store: Store, name: str) -> StepRun:
    artifact = store.new(
        Artifact, run="r", name=name, type="json", digest=store.objects.add(name.encode()), size_bytes=1
    )
    step = store.new(
        StepRun,
        run="r",
        name=name,
        fingerprint=f"f-{name}",
        status="ran",
        reason="new",
        code="c",
        outputs={"result": artifact.id},
    )
    store.records.put(artifact, step)
    return step


def test_a_family_shares_step_results_and_nothing_else(filled: Store) -> None:
    with filled.fork(START) as first, filled.fork(START, share=first) as second:
        second.clock.set(START + timedelta(days=3))
        step = result(second, "train")
        second.records.put(version(second, 7))
        second.tables.append("t", rows(7))
        found = first.records.find(StepRun, ("fingerprint", "=", "f-train"))
        assert found == [], "the result is from the future of the first fork"
        first.clock.set(START + timedelta(days=4))
        assert first.records.find(StepRun, ("fingerprint", "=", "f-train")) == [step]
        artifact = first.records.get(Artifact, step.outputs["result"])
        assert first.objects.read(artifact.digest) == b"train"
        assert first.records.find(ModelVersion, ("version", "=", 7)) == []
        assert seen(first) == [1, 2]
        first.records.delete(StepRun, step.id)
        assert second.records.get(StepRun, step.id) == step
        with filled.fork(START) as stranger:
            stranger.clock.set(START + timedelta(days=9))
            assert stranger.records.find(StepRun) == []
    with pytest.raises(UsageError, match="closed"):
        filled.fork(START, share=first)
    with pytest.raises(UsageError, match="not a fork"):
        filled.fork(START, share=filled)


def test_a_fork_that_is_closed_leaves_its_results_to_its_siblings(filled: Store) -> None:
    with filled.fork(START) as first:
        with filled.fork(START, share=first) as second:
            step = result(second, "train")
        assert first.records.find(StepRun) == [step]
        assert first.objects.read(first.records.get(Artifact, step.outputs["result"]).digest) == b"train"


def test_hidden_kinds(filled: Store) -> None:
    run = filled.new(Run, name="r", started_at=START)
    filled.records.put(run)
    with filled.fork(START, hide=["run"]) as fork:
        assert fork.records.find(Run) == []
        with pytest.raises(NotFoundError):
            fork.records.get(Run, run.id)
        assert len(fork.records.find(ModelVersion)) == 1
    with pytest.raises(UsageError, match="runs"):
        filled.fork(START, hide=["runs"])


def test_a_scratch_store_is_empty_and_removed() -> None:
    clock = SimulatedClock(START)
    with scratch_store("flights", clock) as store, scratch_store("flights", clock, share=store) as sibling:
        assert store.records.events_since(0) == []
        store.records.put(version(store, 1))
        store.tables.append("t", rows(1))
        step = result(store, "train")
        assert seen(store) == [1]
        assert sibling.records.find(StepRun) == [step]
        assert sibling.records.find(ModelVersion) == []
        home = store.home
    assert not home.exists()
    with pytest.raises(UsageError, match="not a valid name"):
        scratch_store("a b", clock)


def test_a_probe_finds_nothing_of_the_future_in_a_fork_but_all_of_it_in_the_store(
    filled: Store, clock: ManualClock
) -> None:
    run = filled.new(Run, name="r", started_at=START, metrics={"early": 1.0})
    filled.records.put(run)
    moment = clock.now()
    clock.advance()
    late = filled.new(Run, name="late", started_at=START, metrics={"late": 1.0})
    filled.records.put(late, version(filled, 2))
    filled.records.update(replace(run, metrics={"early": 1.0, "later": 2.0}))
    filled.records.append_points(run.id, [Point(key="loss", value=1.0, step=0, at=START)])
    filled.records.delete(ModelVersion, "delays@1")
    filled.tables.append("t", rows(3))
    assert leaks(filled.as_of(moment), moment, origin=filled) == []
    with filled.fork(moment) as fork:
        assert leaks(fork, fork.now(), origin=filled) == []
        assert fork.records.search_names(Run, "metrics") == ["early"]
        assert fork.records.read_points(run.id) == []
        fork.clock.set(moment + timedelta(hours=1))
        fork.records.put(version(fork, 2))
        fork.tables.append("t", rows(8))
        assert leaks(fork, fork.now(), origin=filled) == []
        assert len(leaks(fork, moment)) >= 4
    found = " ".join(leaks(filled, moment, origin=filled))
    for way in ("find run", "history of run", "event", "table t", "get run", "points of"):
        assert way in found
