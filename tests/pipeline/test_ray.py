"""Steps on a real Ray cluster of two nodes: same results, records and cache as here; nodes, head and driver killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.pipeline.ray_clusters import RayCluster, free_port

from everloop.errors import (
    MissingExtraError,
    StepError,
    StepTimeoutError,
    UnavailableError,
    UsageError,
    WorkerLostError,
)
from everloop.pipeline import Graph, Listener, run_graph, trace
from everloop.pipeline.executors.ray import RayExecutor
from everloop.records import Artifact, Run, StepRun as StepRecord
from everloop.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Project
    from everloop.pipeline import StepProgress
    from everloop.stores import Store

LOOP = """
    import os, time
    from dataclasses import dataclass
    from pathlib import Path
    import polars as pl
    from everloop.pipeline import current_step, progress, step
    from limits import LIMIT

    HERE = Path(__file__).parent

    @dataclass
    class Model:
        weight: int

    @step
    def rows() -> pl.LazyFrame:
        return pl.LazyFrame({"a": range(LIMIT)})

    @step
    def model(rows: pl.DataFrame, scale: int = 1, rounds: int = 0) -> Model:
        print("training")
        current_step().log(height=rows.height)
        for number in range(rounds):
            progress(number, rounds, note="rounds")
            if (HERE / "seen").exists():
                break
            time.sleep(0.5)
        return Model(rows["a"].sum() * scale)

    @step
    def check(model: Model):
        return {"is": isinstance(model, Model), "weight": model.weight}

    @step(on_driver=True)
    def here(check):
        return os.getpid()

    @step
    def square(number: int, wait_s: float = 0.0):
        if wait_s:
            (HERE / f"at-{number}-{os.getppid()}-{os.getpid()}").touch()
            time.sleep(wait_s)
        return {"number": number * number, "node": os.environ.get("EVERLOOP_TEST_NODE"), "process": os.getpid()}

    @step(timeout_s=1.5)
    def slow():
        time.sleep(60)

    @step
    def dies():
        os._exit(3)

    @step
    def fails():
        raise KeyError("nothing there")

    @step
    def numbers() -> dict:
        import everloop as el
        return {"sum": el.read("numbers.csv").collect()["number"].sum(), "read_by": os.getpid()}

    @step(on_driver=True)
    def counted(numbers: dict):
        return {**numbers, "driver": os.getpid()}

    @step(resources={"gpu": 2})
    def needs_gpu():
        return 1
"""

# All tests share one cluster, as starting one takes half a minute. Those that kill a node and the head come last. In
# any other order, as with several test processes, a new cluster follows one that is not whole.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _ray() -> None:
    if find_spec("ray") is None:
        if "ray" in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
            pytest.fail("Ray is required and not installed")
        pytest.skip("Ray is not installed; pip install 'everloop[ray]'")


@pytest.fixture(scope="module")
def clusters() -> Iterator[list[RayCluster]]:
    """The clusters that were started. Only the last one runs."""
    started: list[RayCluster] = []
    yield started
    for one in started:
        one.stop()


@pytest.fixture
def cluster(clusters: list[RayCluster]) -> RayCluster:
    if not clusters or not clusters[-1].is_whole:
        _replace(clusters)
    return clusters[-1]


@pytest.fixture
def head(clusters: list[RayCluster]) -> RayCluster:
    """A cluster whose other node may be lost."""
    if not clusters or not clusters[-1].has_head:
        _replace(clusters)
    return clusters[-1]


def _replace(clusters: list[RayCluster]) -> None:
    if clusters and not clusters[-1].nodes:
        pytest.fail("the Ray cluster did not start for an earlier test")
    for one in clusters:
        one.stop()
    # A cluster that does not start has no nodes.
    clusters.append(RayCluster())
    clusters[-1].__enter__()


@pytest.fixture(scope="module")
def executors() -> Iterator[dict[str, RayExecutor]]:
    """The executors by the address of their cluster. A new one would start new workers, which takes longest."""
    found: dict[str, RayExecutor] = {}
    yield found
    for one in found.values():
        one.close(kill=True)


@pytest.fixture
def ray(cluster: RayCluster, executors: dict[str, RayExecutor]) -> RayExecutor:
    if cluster.address not in executors:
        executors[cluster.address] = RayExecutor(cluster.address)
    return executors[cluster.address]


@pytest.fixture
def loop(project: Project) -> Any:
    project.edit(loop=LOOP, limits="LIMIT = 10\n")
    return project.load()


class Watching(Listener):
    def __init__(self, folder: Path) -> None:
        self.seen: list[tuple[str, StepProgress]] = []
        self.folder = folder

    def on_progress(self, name: str, progress: StepProgress) -> None:
        self.seen.append((name, progress))
        (self.folder / "seen").touch()


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
    return found


def test_a_run_on_ray_has_the_results_records_and_cache_of_a_run_here(
    loop: Any, project: Project, store: Store, ray: RayExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    graph = Graph.wire([loop.check, loop.here])
    watching = Watching(project.folder)
    # The actor that collects progress starts beside the first steps, which takes seconds on a busy machine. The step
    # ends when its progress has been seen.
    rounds = {"rounds": 240}
    result = run_graph(graph, store, executor=ray, listener=watching, params=rounds)
    assert result.value("check") == {"is": True, "weight": 45}
    assert result.value("here") == os.getpid()  # a step with outside effects runs in this process
    assert [(step.name, step.status) for step in result.steps] == [
        (name, "ran") for name in ("rows", "model", "check", "here")
    ]
    assert store.records.get(Run, result.run).metrics == {"height": 10.0}
    assert {(name, progress.total, progress.note) for name, progress in watching.seen} == {("model", 240.0, "rounds")}
    again = run_graph(graph, store, params=rounds)
    assert {step.status for step in again.steps} == {"cached"}
    changed = run_graph(graph, store, executor=ray, params={"model.scale": 2, "rounds": 1})
    assert {step.name: step.status for step in changed.steps}["rows"] == "cached"
    assert changed.value("check")["weight"] == 90
    assert "training" in wait_for(lambda: capfd.readouterr().err, 10)


def test_an_edit_reaches_workers_that_are_warm(project: Project, loop: Any, store: Store, ray: RayExecutor) -> None:
    assert run_graph(Graph.wire([loop.rows]), store, executor=ray).value("rows").collect().height == 10
    for limit in (11, 12):
        project.edit(limits=f"LIMIT = {limit}\n")
        result = run_graph(Graph.wire([project.load().rows]), store, executor=ray)
        assert result.value("rows").collect().height == limit
        assert result.step("rows").reason == "code changed: limits.LIMIT"


def test_a_mapped_step_uses_both_nodes_and_each_element_is_cached(loop: Any, store: Store, ray: RayExecutor) -> None:
    with trace() as graph:
        loop.square.map(list(range(12)), wait_s=0.4)
    found = run_graph(graph, store, executor=ray).value("square")
    assert [one["number"] for one in found] == [number * number for number in range(12)]
    assert len({one["node"] for one in found}) == 2
    with trace() as graph:
        loop.square.map(list(range(13)), wait_s=0.4)
    again = run_graph(graph, store)
    assert [step.name for step in again.steps if step.status == "ran"] == ["square[12]", "square"]
    assert again.value("square")[:12] == found


def test_steps_that_end_badly_say_why(loop: Any, store: Store, ray: RayExecutor) -> None:
    with pytest.raises(StepError, match="nothing there") as raised:
        run_graph(Graph.wire([loop.fails]), store, executor=ray)
    assert isinstance(raised.value.__cause__, KeyError)
    [failed] = store.records.find(StepRecord, ("name", "=", "fails"))
    assert 'raise KeyError("nothing there")' in (failed.error or "")
    began = time.monotonic()
    with pytest.raises(StepTimeoutError, match=r"timeout of 1\.5 s"):
        run_graph(Graph.wire([loop.slow]), store, executor=ray)
    assert time.monotonic() - began < 55  # the step itself takes 60 s
    with pytest.raises(WorkerLostError, match="worker of step 'dies' died"):
        run_graph(Graph.wire([loop.dies]), store, executor=ray)
    with pytest.raises(UsageError, match="needs 2 of 'gpu', but no node of the Ray cluster has more than 0"):
        run_graph(Graph.wire([loop.needs_gpu]), store, executor=ray)


def test_code_of_a_script_is_sent(store: Store, ray: RayExecutor, tmp_path: Path, cluster: RayCluster) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from everloop.pipeline import Graph, run_graph, step
        from everloop.stores import open_store

        @step
        def answer(factor: int = 6) -> int:
            return factor * 7

        if __name__ == "__main__":
            with open_store(sys.argv[1]) as store:
                print(run_graph(Graph.wire([answer]), store, executor=sys.argv[2]).value("answer"))
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script), str(store.home), f"ray://{cluster.address}"], capture_output=True, text=True
    )
    assert done.stdout == "42\n", done.stderr


def test_ray_client_reaches_a_cluster_from_outside(loop: Any, store: Store, cluster: RayCluster) -> None:
    executor = RayExecutor(f"127.0.0.1:{cluster.client_port}")
    try:
        assert run_graph(Graph.wire([loop.check]), store, executor=executor).value("check")["weight"] == 45
    finally:
        executor.close()


def test_a_store_of_urls_needs_no_shared_files(
    loop: Any,
    project: Project,
    cluster: RayCluster,
    tmp_path: Path,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    s3: str,
    request: pytest.FixtureRequest,
) -> None:
    import boto3

    # Each run of a command has new workers, and so has this one.
    ray = RayExecutor(cluster.address)
    request.addfinalizer(lambda: ray.close(kill=True))

    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="data")
    text = f'[store]\nhome = "home"\nrecords = "{postgres_url}"\nobjects = "s3://data/objects"\ntables = "s3://data/tables"\n'
    (tmp_path / "everloop.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with open_store() as store:
        result = run_graph(Graph.wire([loop.check]), store, executor=ray, params={"scale": 3})
        assert result.value("check") == {"is": True, "weight": 135}
        assert store.records.get(Run, result.run).metrics == {"height": 10.0}
        assert {step.status for step in run_graph(Graph.wire([loop.check]), store, params={"scale": 3}).steps} == {
            "cached"
        }
        # Nodes do not have the project's data files, so the step that reads them runs here.
        (project.folder / "numbers.csv").write_text("number\n1\n2\n")
        monkeypatch.setenv("EVERLOOP_PROJECT", str(project.folder))
        result = run_graph(Graph.wire([loop.counted]), store, executor=ray)
        assert result.value("counted") == {"sum": 3, "driver": os.getpid(), "read_by": os.getpid()}
        (project.folder / "numbers.csv").write_text("number\n1\n2\n4\n")
        again = run_graph(Graph.wire([loop.counted]), store, executor=ray)
        assert again.value("counted")["sum"] == 7
        assert again.step("numbers").reason.startswith("source changed: numbers.csv")


def test_ctrl_c_stops_the_steps_on_the_nodes(
    loop: Any, project: Project, store: Store, ray: RayExecutor, cluster: RayCluster
) -> None:
    del ray
    driver = start_driver(project, store, cluster, wait_s=300)
    wait_for(lambda: len(started(project)) >= 2, 300)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) != 0
    assert_ended(project)
    states = {step.name: step.status for step in store.records.find(StepRecord)}
    assert states["square[0]"] == "interrupted"
    assert [run.state for run in store.records.find(Run)] == ["interrupted"]


def test_a_driver_that_is_killed_takes_its_steps_along_and_the_next_run_resumes(
    loop: Any, project: Project, store: Store, cluster: RayCluster
) -> None:
    driver = start_driver(project, store, cluster, wait_s=3)
    wait_for(lambda: store.records.find(StepRecord, ("status", "=", "ran")), 300)
    driver.kill()
    driver.wait()
    assert_ended(project)
    kept = {step.name for step in store.records.find(StepRecord, ("status", "=", "ran"))}
    assert start_driver(project, store, cluster, wait_s=3).wait(300) == 0
    ran = [step.name for step in store.records.find(StepRecord, ("status", "=", "ran"))]
    assert sorted(ran) == sorted(set(ran))
    assert len(ran) == 7
    assert kept < set(ran)


def test_a_node_that_is_killed_loses_nothing(loop: Any, project: Project, store: Store, cluster: RayCluster) -> None:
    driver = start_driver(project, store, cluster, wait_s=8)
    # Wait until an element runs on the second node.
    wait_for(lambda: set(started(project)) & set(cluster.processes(1)), 300)
    cluster.kill_node(1)
    assert driver.wait(300) == 0, (project.folder / "driver.log").read_text()
    assert_complete(store)
    elements = store.records.find(StepRecord, ("name", "prefix", "square["))
    assert {element.attempts for element in elements} == {1}  # a lost node is not an attempt of the step's own
    assert len(started(project)) > 6  # the elements of the lost node have started twice


def test_a_run_whose_head_is_killed_ends_with_its_reason_and_resumes(
    loop: Any, project: Project, store: Store, head: RayCluster
) -> None:
    driver = start_driver(project, store, head, wait_s=6)
    wait_for(lambda: store.records.find(StepRecord, ("status", "=", "ran")), 300)
    head.kill_node(0)
    assert driver.wait(240) != 0
    [run] = store.records.find(Run)
    assert run.state == "failed"
    assert "connection to the Ray cluster" in (run.error or "")
    kept = {step.name for step in store.records.find(StepRecord, ("status", "=", "ran"))}
    with trace() as graph:
        loop.square.map(list(range(6)), wait_s=6.0)
    result = run_graph(graph, store, executor="pool")
    assert {step.name for step in result.steps if step.status == "cached"} == kept


def test_without_a_cluster_or_ray_the_message_says_what_to_do(
    loop: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"Cannot connect to the Ray cluster at 127.0.0.1:\d+: .*refused"):
        run_graph(Graph.wire([loop.rows]), store, executor=f"ray://127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 15
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "ray.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "empty"), prepend=os.pathsep)
    with pytest.raises(MissingExtraError, match="RayExecutor needs ray"):
        run_graph(Graph.wire([loop.rows]), store, executor="ray")


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from everloop.pipeline import run_graph, trace
from everloop.stores import open_store
import loop

with trace() as graph:
    loop.square.map(list(range(6)), wait_s=float(sys.argv[4]))
with open_store(sys.argv[2]) as store:
    run_graph(graph, store, executor=sys.argv[3])
"""


def start_driver(project: Project, store: Store, cluster: RayCluster, *, wait_s: float) -> subprocess.Popen[bytes]:
    script = project.folder / "driver_script.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(project.folder), str(store.home), f"ray://{cluster.address}"]
    with (project.folder / "driver.log").open("wb") as log:
        return subprocess.Popen([*command, str(wait_s)], stderr=log)


def assert_ended(project: Project) -> None:
    """No process that has started an element is left."""
    processes = started(project)
    assert processes
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes), 60)


def started(project: Project) -> list[int]:
    """The process of each element that has started, once for each start."""
    return [int(path.name.rpartition("-")[2]) for path in project.folder.glob("at-*")]


def assert_complete(store: Store) -> None:
    """Every element has one record and one artifact, and the whole has the results in order."""
    elements = store.records.find(StepRecord, ("name", "prefix", "square["))
    assert sorted(element.name for element in elements) == [f"square[{number}]" for number in range(6)]
    assert {element.status for element in elements} == {"ran"}
    artifacts = store.records.find(Artifact, ("step", "prefix", "square"))
    assert sorted(artifact.step for artifact in artifacts) == ["square", *(f"square[{number}]" for number in range(6))]
