"""Automatic steps never go below the greatest step of the metric."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from everloop.records import Point, Run
from everloop.stores import Store, open_store
from everloop.tracking import join_run, read_metrics, series_of, start_run

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def steps(store: Store, run: str, key: str = "loss") -> list[int]:
    return [point.step for point in read_metrics(store, run, key)]


def test_a_step_that_is_given_raises_those_that_are_not(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0)
        run.log(loss=1.0, step=10)
        run.log(loss=1.0, acc=0.5)
        run.log(loss=1.0, step=3)
        run.log({"loss": 1.0}, acc=0.5)
        run.log(loss=1.0, step=-7)
        run.log(acc=0.5)
    assert steps(store, run.id) == [-7, 0, 3, 10, 11, 12]
    assert steps(store, run.id, "acc") == [0, 1, 2]


@pytest.mark.slow
@given(
    given=st.lists(st.tuples(st.sampled_from(["a", "b"]), st.none() | st.integers(-3, 8)), max_size=15),
    cuts=st.sets(st.integers(0, 15), max_size=2),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_any_mixture_also_over_resumes(given: list[tuple[str, int | None]], cuts: set[int], tmp_path: Path) -> None:
    with open_store(tmp_path / "home") as store:
        run = start_run("train", store=store)
        greatest: dict[str, int] = {}
        expected: list[tuple[str, int]] = []
        for number, (key, step) in enumerate(given):
            if number in cuts:
                run.finish()
                run = start_run(store=store, resume=run.id)
            run.log({key: 1.0}, step=step)
            expected.append((key, max(greatest.get(key, -1) + 1, 0) if step is None else step))
            greatest[key] = max(greatest.get(key, expected[-1][1]), expected[-1][1])
        run.finish()
        found = [(point.key, point.step) for point in read_metrics(store, run.id)]
    assert sorted(found) == sorted(expected)


def test_the_greatest_step_of_64_bits_is_not_passed(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0, step=2**63 - 1)
        run.log(loss=2.0)
    assert steps(store, run.id) == [2**63 - 1, 2**63 - 1]


def test_points_of_a_client_or_an_import_count_when_the_run_is_resumed(store: Store) -> None:
    run = store.new(Run, name="r", started_at=NOW, state="finished")
    store.records.put(run, verb="imported")
    store.records.append_points(
        series_of(run.id), [Point(key="loss", value=1.0, step=step, at=NOW) for step in (5, 40, 7)]
    )
    with start_run(store=store, resume=run.id) as again:
        again.log(loss=1.0, other=2.0)
    assert steps(store, run.id)[-1] == 41
    assert steps(store, run.id, "other") == [0]


def test_a_process_that_joins_goes_on_above_what_is_there(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0, step=4)
        with join_run(store, run.id) as joined:
            joined.log(loss=1.0)
            run.log(loss=1.0)
            joined.log(loss=1.0)
            joined.log(loss=1.0, step=20)
            run.log(loss=1.0)
        run.log(loss=1.0)
    assert steps(store, run.id) == [4, 5, 6, 7, 20, 21, 22]


_OTHER = """
import sys
from everloop.stores import open_store
from everloop.tracking import join_run, start_run
with open_store(sys.argv[1]) as store:
    with join_run(store, sys.argv[2]) if sys.argv[3] == "join" else start_run(store=store, resume=sys.argv[2]) as run:
        run.log(loss=1.0)
        run.log(loss=1.0, step=100)
"""


@pytest.mark.parametrize("how", ["join", "resume"])
def test_what_another_process_has_logged_meanwhile_counts(store: Store, how: str) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0)
        subprocess.run([sys.executable, "-c", _OTHER, str(store.home), run.id, how], check=True)
        run.log(loss=1.0)
    assert steps(store, run.id) == [0, 1, 100, 101]


def test_a_forked_child_counts_on(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.log(loss=1.0)
        child = os.fork()
        if child == 0:
            try:
                run.log(loss=1.0)
                run.log(loss=1.0)
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        run.log(loss=1.0)
    assert steps(store, run.id) == [0, 1, 2, 3]


def test_threads_with_and_without_steps(store: Store) -> None:
    with start_run("train", store=store) as run:

        def counts() -> None:
            for _ in range(100):
                run.log(loss=1.0)

        def gives() -> None:
            for step in range(0, 1000, 10):
                run.log(loss=1.0, step=step)

        threads = [threading.Thread(target=work) for work in (counts, gives, counts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        run.log(loss=1.0)
    found = steps(store, run.id)
    assert len(found) == 301
    assert found[-1] >= 991


def test_a_store_that_does_not_answer_is_no_trouble(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.errors import UnavailableError

    calls = []

    def down(*_: object) -> dict[str, int]:
        calls.append(1)
        raise UnavailableError("down")

    with start_run("train", store=store) as run, join_run(store, run.id) as joined, monkeypatch.context() as patch:
        run.log(loss=1.0, step=8)
        patch.setattr(type(store.records), "greatest_steps", down)
        for _ in range(5):
            joined.log(loss=1.0)
        # Asked once, and left alone for a while.
        assert len(calls) == 1
    assert steps(store, run.id) == [8, 9, 10, 11, 12, 13]
