"""Folding of journals into the store: every point exactly once, whichever process folds or dies."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from everloop.errors import CorruptionError
from everloop.records import Run
from everloop.stores import Journal, Store, open_store
from everloop.tracking import fold, fold_journal, read_metrics, series_of, start_run
from everloop.tracking.journal import journal_frames

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def orphan(store: Store, points: int, name: str = "train") -> tuple[Run, Path]:
    """The journal of a run whose process died."""
    run = store.new(Run, name=name, started_at=NOW)
    store.records.put(run)
    with Journal.create(store.journals, f"run-{run.id}") as journal:
        journal.append(journal_frames.encode_start(run))
        for step in range(points):
            journal.append(journal_frames.encode_metrics(NOW, step, {"loss": float(step)}))
    return run, journal.path


def test_a_living_run_is_folded_as_far_as_it_is(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1, step=0)
        assert fold(store) == 1
        run.log(loss=2, step=1)
        assert [point.value for point in read_metrics(store, run.id)] == [1.0, 2.0]
        assert fold(store) == 0
        run.log(loss=3, step=2)
    assert [point.value for point in read_metrics(store, run.id)] == [1.0, 2.0, 3.0]
    assert run.record.metrics == {"loss": 3.0}


def test_a_journal_of_many_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.tracking.journal.run_folding._BATCH", 7)
    for points in (0, 6, 7, 13, 14, 50):
        run, path = orphan(store, points)
        assert fold_journal(store, path) == points
        assert [point.step for point in read_metrics(store, run.id)] == list(range(points))
        assert not path.exists()


def test_a_folder_that_dies_half_way_leaves_nothing_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everloop.tracking.journal.run_folding._BATCH", 10)
    run, path = orphan(store, 35)
    append = type(store.records).append_rows
    calls = 0

    def dies(records: object, series: str, rows: list[Any]) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # the mark of the third batch: its points stand already in the same transaction
            raise MemoryError("killed")
        append(records, series, rows)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(store.records), "append_rows", dies)
        with pytest.raises(MemoryError):
            fold(store)
    assert len(store.records.read_points(series_of(run.id))) == 19  # the first frame is the start
    assert fold(store) == 16
    assert [point.step for point in read_metrics(store, run.id)] == list(range(35))
    assert not path.exists()


def test_a_folder_that_dies_before_it_removes_the_journal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run, path = orphan(store, 5)

    def dies(_: Path) -> None:
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(MemoryError):
            fold(store)
    revision = store.records.get(Run, run.id).revision
    assert fold(store) == 0
    assert not path.exists()
    assert len(read_metrics(store, run.id)) == 5
    assert store.records.get(Run, run.id).revision == revision


def test_a_torn_tail_is_no_point(store: Store) -> None:
    run, path = orphan(store, 5)
    path.write_bytes(path.read_bytes()[:-3])
    assert fold(store) == 4
    assert store.records.get(Run, run.id).metrics == {"loss": 3.0}


def test_damage_is_named_and_does_not_stop_the_others(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    _, path = orphan(store, 50)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    whole, _ = orphan(store, 3)
    with pytest.raises(CorruptionError):
        fold_journal(store, path)
    with caplog.at_level(logging.ERROR, "everloop.tracking"):
        fold(store)
    assert path.name in caplog.text
    assert path.exists()
    assert len(read_metrics(store, whole.id)) == 3


def test_a_writer_that_died_before_its_first_word(store: Store) -> None:
    Journal.create(store.journals, "run-nobody").close()
    assert fold(store) == 0
    assert list(store.journals.iterdir()) == []


def test_journals_of_others_are_left_alone(store: Store) -> None:
    with Journal.create(store.journals, "predictions-delays") as journal:
        journal.append(b"anything")
    assert fold(store) == 0
    assert journal.path.exists()


def test_frames_of_a_later_version_are_passed_over(store: Store) -> None:
    run, path = orphan(store, 1)
    with path.open("ab") as file, Journal.create(store.journals, "other") as journal:
        journal.append(bytes([0x92, 99, 1]))  # [99, 1]
        file.write(journal.path.read_bytes()[8:])
    assert fold_journal(store, path) == 1
    assert store.records.get(Run, run.id).metrics == {"loss": 0.0}


def test_each_journal_goes_to_its_project(store: Store) -> None:
    other = store.for_project("other")
    run, _ = orphan(other, 4)
    assert fold(store) == 4
    assert len(other.records.read_points(series_of(run.id))) == 4
    assert store.records.read_points(series_of(run.id)) == []


def test_a_deleted_run_stays_deleted(store: Store) -> None:
    run, _ = orphan(store, 2)
    store.records.delete(Run, run.id)
    fold(store)
    assert store.records.find(Run) == []


_FOLD = """
import sys
from everloop.stores import open_store
from everloop.tracking import fold
with open_store(sys.argv[1]) as store:
    sys.stdin.readline()
    print(sum(fold(store) for _ in range(5)))
"""


@pytest.mark.slow
def test_processes_that_fold_at_once_share_the_work(store: Store) -> None:
    runs = [orphan(store, 300)[0] for _ in range(6)]
    with start_run("alive", store=store) as alive:
        alive.log(loss=1)
        folders = [
            subprocess.Popen(
                [sys.executable, "-c", _FOLD, str(store.home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        said = [folder.communicate("go\n")[0] for folder in folders]
    assert all(folder.returncode == 0 for folder in folders)
    assert sum(map(int, said)) == 6 * 300 + 1
    for run in runs:
        assert [point.step for point in read_metrics(store, run.id)] == list(range(300))
    assert len(read_metrics(store, alive.id)) == 1


numbers = st.floats(allow_nan=False)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@pytest.mark.slow
@given(
    logged=st.lists(st.tuples(st.integers(-5, 5), st.dictionaries(names, numbers, max_size=3)), max_size=12),
    cuts=st.sets(st.integers(0, 12)),
)
@example(logged=[(1, {"0": 1.0}), (0, {"0": 0.0})], cuts=set())
@example(logged=[(1, {"0": 1.0}), (1, {"0": 0.0})], cuts={1})
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_folding_in_any_portions_gives_the_same_points(
    tmp_path: Path, logged: list[tuple[int, dict[str, float]]], cuts: set[int]
) -> None:
    with open_store(tmp_path / "portions") as store:
        with start_run("train", store=store) as run:
            for index, (step, values) in enumerate(logged):
                if index in cuts:
                    fold(store)
                run.log(values, step=step)
        found = sorted((point.key, point.step, point.value) for point in read_metrics(store, run.id))
        assert found == sorted((key, step, value) for step, values in logged for key, value in values.items())
        # The greatest step counts, and of one step what was logged last.
        in_order = sorted(logged, key=lambda one: one[0])
        last = {key: value for _, values in in_order for key, value in values.items()}
        assert run.record.metrics == last
