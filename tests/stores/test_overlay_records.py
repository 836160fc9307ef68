"""The records of a fork, against the conformance suite and against a full copy of the store."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings, strategies as st

from everloop.errors import EverloopError
from everloop.records import ModelVersion, Point, Run
from everloop.stores import new_id
from everloop.stores.forks.fork_database import create_database
from everloop.stores.forks.overlay_records import OverlayRecords
from everloop.stores.forks.record_layers import OriginLayer
from everloop.stores.records.expressions import And, Compare
from everloop.stores.records.sqlite import SqliteRecords
from everloop.testing.stores import START, ManualClock, OpenRecords, RecordStoreSuite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from everloop.stores import Clock, RecordStore


class TestForkOfAnEmptyStore(RecordStoreSuite):
    @pytest.fixture
    def open_records(self, tmp_path: Path) -> Iterator[OpenRecords]:
        base = SqliteRecords(tmp_path / "base.db", project="flights", actor="user:ann@desk", clock=ManualClock())
        database = create_database(tmp_path / "own.db")

        def open_records(clock: Clock, project: str = "flights", actor: str = "user:ann@desk") -> RecordStore:
            layers = [OriginLayer(base.as_of(START))]
            return OverlayRecords(database, layers, moment=START, depth=1, project=project, actor=actor, clock=clock)

        yield open_records
        database.close()
        base.close()


class Stacked:
    """Records that are forked again after each write, so that each write changes what lies below."""

    WRITES = ("put", "update", "delete", "restore", "move", "append_points", "append_rows", "append_event", "purge")
    DEEPEST = 12

    def __init__(self, pile: list[Any], folder: Path, project: str, actor: str, clock: Clock) -> None:
        self._pile, self._folder = pile, folder
        self._project, self._actor, self._clock = project, actor, clock
        self._closed = self._inside = False

    def __getattr__(self, name: str) -> Any:
        if self._closed:
            closed = self._top()
            closed.close()
            return getattr(closed, name)
        if name in self.WRITES:
            return lambda *args, **kwargs: self._write(name, *args, **kwargs)
        return getattr(self._top(), name)

    def for_project(self, project: str) -> Stacked:
        return Stacked(self._pile, self._folder, project, self._actor, self._clock)

    def as_actor(self, actor: str) -> Stacked:
        return Stacked(self._pile, self._folder, self._project, actor, self._clock)

    @contextmanager
    def transaction(self, *parts: str) -> Iterator[None]:
        self._inside, outer = True, self._inside
        try:
            with self._top().transaction(*parts):
                yield
        finally:
            self._inside = outer
        self._grow()

    def close(self) -> None:
        self._closed = True

    def _top(self) -> Any:
        return self._pile[-1].for_project(self._project).as_actor(self._actor).with_clock(self._clock)

    def _write(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self._top(), name)(*args, **kwargs)
        self._grow()
        return result

    def _grow(self) -> None:
        alone = threading.current_thread() is threading.main_thread() and threading.active_count() == 1
        if alone and not self._inside and len(self._pile) < self.DEEPEST:
            self._pile.append(fork_of(self._pile[-1], self._folder / f"{len(self._pile)}.db", self._clock))


def fork_of(base: Any, path: Path, clock: Clock) -> OverlayRecords:
    return OverlayRecords(
        create_database(path),
        [OriginLayer(base.as_of(clock.now()))],
        moment=clock.now(),
        depth=getattr(base, "depth", 0) + 1,
        project=base.project,
        actor=base.actor,
        clock=clock,
    )


class TestForksOfForks(RecordStoreSuite):
    @pytest.fixture
    def open_records(self, tmp_path: Path) -> Iterator[OpenRecords]:
        clock = ManualClock()
        base = SqliteRecords(tmp_path / "base.db", project="flights", actor="user:ann@desk", clock=clock)
        pile: list[Any] = [fork_of(base, tmp_path / "0.db", clock)]

        def open_records(clock: Clock, project: str = "flights", actor: str = "user:ann@desk") -> Any:
            return Stacked(pile, tmp_path, project, actor, clock)

        yield open_records
        for records in pile:
            records.database.close()
        base.close()


RUNS = [new_id(START) for _ in range(8)]
VERSIONS = [new_id(START) for _ in range(6)]
VALUES = [None, 0.5, 2, -1, "a", "Z", True, float("inf")]

number = st.integers(0, 7)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put_run"), number, number),
        st.tuples(st.just("put_version"), number, number),
        st.tuples(st.just("update_run"), number, number),
        st.tuples(st.just("rename_version"), number, number),
        st.tuples(st.just("stale_update"), number, number),
        st.tuples(st.sampled_from(["delete_run", "delete_version", "restore_run", "restore_version"]), number, number),
        st.tuples(
            st.sampled_from(["move_run", "points", "event", "purge", "tick", "two_puts", "failing"]), number, number
        ),
    ),
    max_size=14,
)


def apply(records: Any, clock: ManualClock, step: tuple[str, int, int]) -> object:
    """Run one operation. Returns its result, or its error as a text."""
    name, a, b = step
    run_id, version_id = RUNS[a], VERSIONS[a % 6]

    def run(identity: str) -> Run:
        params = {"p": VALUES[b], "q": {"deep": b}}
        common = {"project": records.project, "created_at": START + timedelta(seconds=a // 2), "started_at": START}
        metrics = {"auc": b / 4} if b % 3 else {}
        return Run(id=identity, name=f"r{b}", params=params, metrics=metrics, **common)

    def version(identity: str) -> ModelVersion:
        common = {"project": records.project, "created_at": START, "package": f"sha256:{a:064x}"}
        return ModelVersion(id=identity, model="m", version=b, **common)

    def fail() -> None:
        with records.transaction():
            records.update(replace(records.get(Run, run_id), name="undone"))
            records.delete(ModelVersion, f"m@{b}")
            raise ZeroDivisionError

    actions: dict[str, Callable[[], object]] = {
        "put_run": lambda: records.put(run(run_id)),
        "put_version": lambda: records.put(version(version_id)),
        "two_puts": lambda: records.put(run(RUNS[b]), version(version_id)),
        "update_run": lambda: records.update(replace(run(run_id), revision=records.get(Run, run_id).revision)),
        "stale_update": lambda: records.update(replace(run(run_id), revision=b)),
        "rename_version": lambda: records.update(replace(records.get(ModelVersion, version_id), version=b)),
        "delete_run": lambda: records.delete(Run, run_id),
        "delete_version": lambda: records.delete(ModelVersion, f"m@{b}"),
        "restore_run": lambda: records.restore(Run, run_id),
        "restore_version": lambda: records.restore(ModelVersion, f"m@{b}" if a % 2 else version_id),
        "move_run": lambda: records.move(Run, run_id, "trains"),
        "points": lambda: records.append_points(run_id, [Point(key="loss", value=b, step=b, at=START)]),
        "event": lambda: replace(records.append_event("alarm", "clock", run_id, data={"b": b}), seq=0),
        "purge": lambda: records.purge(clock.now()),
        "tick": lambda: clock.advance(b),
        "failing": fail,
    }
    other = records.for_project("trains")
    taken = [one for one in RUNS if other.intervals(Run, one) or other.deleted_ids(Run, one)]
    if name in ("put_run", "two_puts") and {run_id, RUNS[b]} & set(taken):
        # Ids are unique in all projects. A fork looks only into its own, since nobody chooses an id by hand.
        return "moved away"
    try:
        return actions[name]()
    except (EverloopError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"


ORDERS = (
    "id",
    "-id",
    "created_at",
    "-created_at",
    "name",
    "-name",
    "metrics.auc",
    "-metrics.auc",
    "params.p",
    "-params.p",
)


def contents(records: Any) -> dict[str, object]:
    """All that can be read, in a form that can be compared."""
    seen: dict[str, object] = {}
    for project in ("flights", "trains"):
        here = records.for_project(project)
        for order in ORDERS:
            full = here.find(Run, order=order)
            seen[f"{project} {order}"] = full
            paged, after = [], None
            while page := here.find(Run, order=order, limit=2, after=after):
                paged += page
                after = page[-1].id
            assert paged == full, order
        seen[f"{project} where"] = here.find(Run, ("metrics.auc", ">", 0.3), ("params.q.deep", "<", 6), order="-name")
        seen[f"{project} versions"] = here.find(ModelVersion, order="key")
        anything = And((Compare(("name",), ">", "r2"),))
        for descending in (False, True):
            hits = here.search(Run, anything, order=[(("metrics", "auc"), descending), (("name",), False)])
            seen[f"{project} search {descending}"] = sorted(hit.id for hit in hits), [hit.position for hit in hits]
            again = [*here.search(Run, anything, order=[(("name",), descending)], limit=2)]
            if again:
                rest = here.search(Run, anything, order=[(("name",), descending)], after=again[-1])
                assert [*again, *rest] == here.search(Run, anything, order=[(("name",), descending)])
        seen[f"{project} count"] = here.count(Run, anything)
        seen[f"{project} many"] = here.get_many(Run, RUNS[::-1])
        seen[f"{project} values"] = here.values_at(Run, RUNS, [("metrics", "auc"), ("name",)])
        # Without some other record's names, all records are read: what was moved away or purged has no names then.
        seen[f"{project} names"] = names = here.search_names(Run, "metrics", without=["another"])
        # A moved record brings only the names that it has now.
        assert project == "trains" or set(names) <= set(here.search_names(Run, "metrics"))
        for kind, ids in ((Run, RUNS), (ModelVersion, VERSIONS)):
            for identity in ids:
                seen[f"{project} {identity} life"] = here.intervals(kind, identity)
                seen[f"{project} {identity} deleted"] = here.deleted_ids(kind, identity)
                try:
                    seen[f"{project} {identity} history"] = here.history(kind, identity)
                except EverloopError as error:
                    seen[f"{project} {identity} history"] = str(error)
        for identity in RUNS:
            seen[f"{project} {identity} points"] = here.read_points(identity)
            rows = here.read_columns(identity, "loss")
            seen[f"{project} {identity} columns"] = [row[1:] for row in rows]
            assert [row[0] for row in rows] == sorted({row[0] for row in rows})
            assert here.read_columns(identity, "loss", after=rows[0][0] if rows else 0) == rows[1:]
            seen[f"{project} {identity} steps"] = (
                here.greatest_steps(identity),
                here.sample_points([identity], ["loss"], 3),
            )
        # Numbers of events rise, with gaps where other projects have events, and a fork has no events of others below.
        events = here.events_since(0)
        numbers = [event.seq for event in events]
        assert numbers == sorted(set(numbers))
        assert here.last_event() == max(numbers, default=0)
        seen[f"{project} events"] = [replace(event, seq=0) for event in events]
        third = numbers[2] if len(numbers) > 2 else 0
        some = here.events_since(third, kinds=["run", "clock"], limit=4)
        seen[f"{project} some events"] = [replace(event, seq=0) for event in some]
    stored = [(one.project, one.kind, one.id, one.body, one.current, one.deleted_at) for one in records.stored()]
    seen["stored"] = sorted(stored, key=str)
    return seen


@pytest.mark.slow
@given(operations, operations)
@settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
def test_a_fork_behaves_as_a_full_copy(
    tmp_path_factory: pytest.TempPathFactory, before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("forks")
    clock = ManualClock()
    base = SqliteRecords(folder / "base.db", project="flights", actor="user:ann@desk", clock=clock)
    for step in before:
        apply(base, clock, step)
    base.database.copy_to(folder / "copy.db")
    copy = SqliteRecords(folder / "copy.db", project="flights", actor="user:ann@desk", clock=ManualClock(clock.now()))
    fork = fork_of(base, folder / "own.db", ManualClock(clock.now()))
    untouched = contents(base)
    # What is written to the store later is not visible in the fork.
    clock.advance()
    for step in after[::-1]:
        # What a store purges or moves to another project is missing from its views, and so from forks.
        if step[0] not in ("purge", "move_run"):
            apply(base, clock, step)
    for step in after:
        assert apply(fork, fork.clock, step) == apply(copy, copy.clock, step), step
    assert different(contents(fork), contents(copy)) == {}
    early = START + timedelta(seconds=3)
    assert different(without_moved_points(contents(fork.as_of(early)), after), contents(copy.as_of(early))) == {}
    assert different(contents(base.as_of(fork.forked_at)), untouched) == {}
    for records in (base, copy, fork):
        records.database.close()


def without_moved_points(seen: dict[str, object], steps: list[tuple[str, int, int]]) -> dict[str, object]:
    """Leave out the points of moved runs: in a fork they arrive in their new project at the time of the move."""
    moved = {RUNS[a] for name, a, _ in steps if name == "move_run"}
    return {
        name: value
        for name, value in seen.items()
        if name.split()[-1] not in ("points", "columns", "steps") or name.split()[1] not in moved
    }


def different(one: dict[str, object], two: dict[str, object]) -> dict[str, object]:
    return {name: (value, two[name]) for name, value in one.items() if value != two[name]}
