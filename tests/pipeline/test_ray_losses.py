"""How the Ray executor handles losses, without Ray: a gateway in this process runs jobs like a node, or loses them."""

from __future__ import annotations

import json
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.data import read
from everloop.errors import SourceError, UsageError, WorkerLostError
from everloop.pipeline import Graph, run_graph, trace
from everloop.pipeline.executors.ray import MOST_MOVES, RayExecutor
from everloop.pipeline.executors.ray_worker import MissingFile, run_spec
from everloop.pipeline.executors.worker import Stale, failed
from everloop.records import Artifact, StepRun
from everloop.stores import SimulatedClock, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Project
    from everloop.stores import Store

LOOP = """
    from everloop.pipeline import step

    @step
    def square(number: int) -> int:
        return number * number
"""


class Gateway:
    """Loses each job as often as it has entries in `losses`, then runs it."""

    closed = False
    nodes = {"only": {"CPU": 2.0}}  # noqa: RUF012

    def __init__(self, *losses: str) -> None:
        self.losses = losses
        self.sent: dict[str, int] = {}

    def submit(self, name: str, spec: bytes, options: dict[str, Any], receiver: Callable[..., None]) -> None:
        number = self.sent[name] = self.sent.get(name, 0) + 1
        if number <= len(self.losses):
            receiver("lost", self.losses[number - 1], "It has gone.")
        else:
            receiver("done", run_spec(spec))

    def take_progress(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.closed = True


def squares(project: Project, store: Store, gateway: Gateway) -> Any:
    project.edit(loop=LOOP)
    with trace() as graph:
        project.load().square.map([1, 2, 3])
    executor = RayExecutor("cluster:1")
    executor._connection = gateway  # type: ignore[assignment]
    return run_graph(graph, store, executor=executor)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [(), ("worker",), ("node",) * MOST_MOVES, ("node", "worker", "node")])
def test_jobs_are_sent_again_and_recorded_once(project: Project, store: Store, losses: tuple[str, ...]) -> None:
    gateway = Gateway(*losses)
    result = squares(project, store, gateway)
    assert result.value("square") == [1, 4, 9]
    assert gateway.sent == {f"square[{number}]": 1 + len(losses) for number in range(3)}
    steps = store.records.find(StepRun, ("status", "=", "ran"))
    assert sorted(step.name for step in steps) == ["square", "square[0]", "square[1]", "square[2]"]
    assert {step.attempts for step in steps} == {1}
    assert len(store.records.find(Artifact)) == 4
    again = squares(project, store, Gateway("head"))
    assert {step.status for step in again.steps} == {"cached"}


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (("worker", "worker"), r"The Ray worker of step 'square\[\d\]' died: It has gone"),
        (("memory",), r"The Ray worker of step 'square\[\d\]' died: It has gone"),
        (("node",) * (MOST_MOVES + 1), rf"lost its Ray node {MOST_MOVES + 1} times"),
        (("head",), r"The connection to the Ray cluster at cluster:1 was lost"),
    ],
)
def test_a_job_that_is_lost_too_often_fails_with_the_reason(
    project: Project, store: Store, losses: tuple[str, ...], message: str
) -> None:
    with pytest.raises(WorkerLostError, match=message):
        squares(project, store, Gateway(*losses))
    assert not store.records.find(StepRun, ("status", "=", "ran"))


def test_a_node_without_everloop_is_named(project: Project, store: Store) -> None:
    class Bare(Gateway):
        def submit(self, name: str, spec: bytes, options: dict[str, Any], receiver: Callable[..., None]) -> None:
            receiver("lost", "failed", "RuntimeError: No module named 'everloop'")

    with pytest.raises(UsageError, match="cannot import everloop"):
        squares(project, store, Bare())


def test_a_step_whose_files_are_only_here_runs_here(project: Project, store: Store) -> None:
    class Bare(Gateway):
        def submit(self, name: str, spec: bytes, options: dict[str, Any], receiver: Callable[..., None]) -> None:
            self.sent[name] = self.sent.get(name, 0) + 1
            receiver("done", pickle.dumps(MissingFile("There is no file 'data.csv'.")))

    gateway = Bare()
    result = squares(project, store, gateway)
    assert result.value("square") == [1, 4, 9]
    # No element is sent twice, and those that had not been sent yet start here.
    assert set(gateway.sent.values()) == {1}
    steps = store.records.find(StepRun, ("name", "prefix", "square["))
    assert {(step.status, step.attempts) for step in steps} == {("ran", 1)}


def test_only_a_missing_file_counts_as_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as plain:
        (tmp_path / "data.csv").read_bytes()
    with pytest.raises(SourceError) as ours:
        read(str(tmp_path / "*.csv"))
    with pytest.raises(NotADirectoryError) as other:
        (Path(__file__) / "data.csv").read_bytes()
    assert failed(plain.value).missing_file
    assert failed(ours.value).missing_file
    assert not failed(other.value).missing_file
    assert not failed(PermissionError("not yours")).missing_file


@pytest.mark.slow
def test_steps_elsewhere_see_the_simulated_time_of_the_run(project: Project, tmp_path: Path) -> None:
    project.edit(
        loop="""
        from everloop.pipeline import current_step, step

        @step(cache=False)
        def when() -> str:
            return current_step().store.now().isoformat()
        """
    )
    clock = SimulatedClock(datetime(2013, 4, 1, tzinfo=UTC))
    executor = RayExecutor("cluster:1")
    executor._connection = Gateway()  # type: ignore[assignment]
    with open_store(tmp_path / "then", clock=clock) as store:
        for day in (1, 2):
            clock.set(datetime(2013, 4, day, tzinfo=UTC))
            for chosen in (executor, "pool"):
                result = run_graph(Graph.wire([project.load().when]), store, executor=chosen)
                assert result.value("when") == f"2013-04-0{day}T00:00:00+00:00"


@pytest.fixture
def workers() -> Iterator[list[ProcessPoolExecutor]]:
    """Two other processes that stay warm, as workers of Ray."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as first, ProcessPoolExecutor(1, mp_context=spawn) as second:
        yield [first, second]


@pytest.mark.slow
def test_a_warm_worker_imports_another_project_of_the_same_names(
    project: Project, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: list[ProcessPoolExecutor]
) -> None:
    text = """
        from dataclasses import dataclass
        from pathlib import Path
        from everloop.pipeline import step

        @dataclass
        class Model:
            weight: int

        @step(cache=False)
        def model() -> Model:
            return Model({weight})

        @step(cache=False)
        def check(model: Model):
            return [isinstance(model, Model), model.weight, Path(__file__).parent.name]
        """

    class Warm(Gateway):
        def submit(self, name: str, spec: bytes, options: dict[str, Any], receiver: Callable[..., None]) -> None:
            # Some workers have imported an earlier project, and others are new to it.
            worker = workers[name == "model" and weight > 1]
            receiver("done", worker.submit(run_spec, spec).result())

    executor = RayExecutor("cluster:1")
    executor._connection = Warm()  # type: ignore[assignment]
    for folder, weight in (("one", 1), ("two", 2), ("two", 3), ("one", 1)):
        project.folder = tmp_path / folder
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(project.folder))
            project.edit(loop=text.replace("{weight}", str(weight)))
            found = run_graph(Graph.wire([project.load().check]), store, executor=executor).value("check")
            assert found == [True, weight, folder], (folder, weight)


@pytest.mark.slow
def test_a_folder_in_a_constant_does_not_make_the_code_of_a_node_without_these_files_differ(
    project: Project, store: Store, monkeypatch: pytest.MonkeyPatch, workers: list[ProcessPoolExecutor]
) -> None:
    class Elsewhere(Gateway):
        def submit(self, name: str, spec: bytes, options: dict[str, Any], receiver: Callable[..., None]) -> None:
            given = json.loads(spec)
            given["local"]["modules"] = {}
            reply = workers[0].submit(run_spec, json.dumps(given).encode()).result()
            kinds.append(type(pickle.loads(reply)))  # noqa: S301
            receiver("done", reply)

    kinds: list[type] = []
    executor = RayExecutor("cluster:1")
    executor._connection = Elsewhere()  # type: ignore[assignment]
    monkeypatch.syspath_prepend(str(project.folder))
    project.edit(
        loop="""
        from dataclasses import dataclass
        from pathlib import Path
        from everloop.pipeline import step

        HERE = Path(__file__).parent

        @dataclass
        class Model:
            folder: str

        @step(cache=False)
        def model() -> Model:
            return Model(str(HERE))

        @step(cache=False)
        def check(model: Model):
            return [isinstance(model, Model), model.folder]
        """
    )
    found = run_graph(Graph.wire([project.load().check]), store, executor=executor).value("check")
    assert found[0] is True
    assert found[1] != str(project.folder)
    assert Stale not in kinds
    # Code that differs is still sent.
    monkeypatch.setattr(sys.modules["loop"], "HERE", project.folder / "other")
    found = run_graph(Graph.wire([sys.modules["loop"].model]), store, executor=executor).value("model")
    assert found.folder == str(project.folder / "other")
    assert Stale in kinds
