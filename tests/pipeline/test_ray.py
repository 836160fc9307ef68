"""Steps on a real Ray cluster of two nodes: same results, records and cache as here; nodes, head and driver killed."""

from __future__ import annotations

import os
import re
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
from everloop.registry import load_model, save_model
from everloop.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Project
    from everloop.pipeline import StepProgress
    from everloop.stores import Store

LOOP = """
    import hashlib, os, time
    from dataclasses import dataclass
    from pathlib import Path
    import numpy as np
    import polars as pl
    from everloop.pipeline import current_step, progress, step
    from everloop.training import AutoTrain
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
    def square(number: int, until: str = ""):
        node = os.environ.get("EVERLOOP_TEST_NODE")
        if until:
            (HERE / f"at-{number}-{os.getppid()}-{os.getpid()}").touch()
            (HERE / f"{node}").touch()
            # Until both nodes have started an element, or until the test creates the file of this element or of all.
            both = [HERE / f"{node[:-1]}{index}" for index in (0, 1)] if node else []
            end = time.monotonic() + 240
            while time.monotonic() < end:
                if until == "both" and all(file.exists() for file in both):
                    break
                if until == "go" and any((HERE / name).exists() for name in ("go", f"go-{number}")):
                    break
                time.sleep(0.05)
        return {"number": number * number, "node": node, "process": os.getpid()}

    @step(resources={"head": 1})
    def search(trials: int = 6) -> dict:
        (HERE / f"search-{os.getpid()}").touch()
        rng = np.random.default_rng(0)
        table = pl.DataFrame({f"x{k}": rng.normal(size=8_000) for k in range(8)})
        table = table.with_columns(late=pl.col("x0") * pl.col("x1") + pl.Series(rng.normal(size=8_000)) > 0.5)
        found = AutoTrain(budget_s=900, trials=trials, threads=1).fit(table, target="late")
        return {
            "leaderboard": [{k: v for k, v in entry.items() if k != "seconds"} for entry in found.leaderboard],
            "model": {name: hashlib.sha256(data).hexdigest() for name, data in found.model.to_files().items()},
            "predictions": hashlib.sha256(found.predict_scores(table).tobytes()).hexdigest(),
        }

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

# All tests share one cluster, as starting one takes long. A node that was killed is started again. The test that kills
# the head comes last; in any other order, as with several test processes, a new cluster follows.
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
    if not clusters or not clusters[-1].has_head:
        _replace(clusters)
    clusters[-1].repair()
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
        loop.square.map(list(range(12)), until="both")
    found = run_graph(graph, store, executor=ray).value("square")
    assert [one["number"] for one in found] == [number * number for number in range(12)]
    assert len({one["node"] for one in found}) == 2
    with trace() as graph:
        loop.square.map(list(range(13)), until="both")
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


def test_a_pytorch_module_is_trained_on_both_nodes_as_the_docs_describe(
    project: Project, store: Store, ray: RayExecutor, tmp_path: Path, need: Any
) -> None:
    # Ray Train needs the others.
    if any(find_spec(name) is None for name in ("torch", "fsspec", "pandas", "pyarrow", "pydantic")):
        need("torch", "PyTorch", "pip install torch safetensors 'ray[train]'")
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    [recipe] = re.findall(r"^```python\n# train_on_nodes\.py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    project.edit(
        train_on_nodes=recipe,
        loop="""
            import numpy as np
            import polars as pl
            from everloop.pipeline import step
            from train_on_nodes import fit

            @step
            def rows() -> pl.DataFrame:
                a, b = np.random.default_rng(0).normal(size=(2, 400))
                return pl.DataFrame({"a": a, "b": b, "late": a > b})
        """,
    )
    loop = project.load()
    graph = Graph.wire([loop.rows, loop.fit])
    result = run_graph(graph, store, executor=ray, params={"storage": str(tmp_path / "state")})
    module, rows = result.value("fit"), result.value("rows")
    features = rows.select("a", "b")
    save_model(module, "late", example=features, task="binary", store=store, compile=False)
    scores = load_model(store, "late").predict(features)
    assert ((scores > 0.5) == rows["late"].to_numpy()).mean() > 0.97


def test_ctrl_c_stops_the_steps_on_the_nodes(
    loop: Any, project: Project, store: Store, ray: RayExecutor, cluster: RayCluster
) -> None:
    del ray
    driver = start_driver(project, store, cluster)
    wait_for(lambda: len(started(project)) >= 2, 300)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) != 0
    assert_ended(project)
    states = {step.name: step.status for step in store.records.find(StepRecord)}
    assert states["square[0]"] == "interrupted"
    assert [run.state for run in store.records.find(Run)] == ["interrupted"]


def test_ctrl_c_stops_the_trials_of_a_search_on_all_nodes(
    loop: Any, project: Project, store: Store, cluster: RayCluster
) -> None:
    driver = start_driver(project, store, cluster, "search")
    trials = wait_for(lambda: trials_at(cluster, 0) and trials_at(cluster, 1), 300)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) != 0
    wait_for(lambda: not trials_at(cluster, 0) and not trials_at(cluster, 1), 60)
    assert not any(Path(f"/proc/{process}").exists() for process in [*trials, *searching(project)])
    assert [step.status for step in store.records.find(StepRecord)] == ["interrupted"]


def test_a_driver_that_is_killed_takes_its_steps_along_and_the_next_run_resumes(
    loop: Any, project: Project, store: Store, cluster: RayCluster
) -> None:
    driver = start_driver(project, store, cluster)
    release(project, "go-0")
    wait_for(lambda: store.records.find(StepRecord, ("status", "=", "ran")), 300)
    driver.kill()
    driver.wait()
    assert_ended(project)
    kept = {step.name for step in store.records.find(StepRecord, ("status", "=", "ran"))}
    release(project, "go")
    assert start_driver(project, store, cluster).wait(300) == 0
    ran = [step.name for step in store.records.find(StepRecord, ("status", "=", "ran"))]
    assert sorted(ran) == sorted(set(ran))
    assert len(ran) == 7
    assert kept < set(ran)


def test_a_search_on_the_nodes_finds_the_model_of_a_search_here_although_a_node_is_killed(
    loop: Any, project: Project, store: Store, cluster: RayCluster
) -> None:
    driver = start_driver(project, store, cluster, "search")
    # The step itself runs on the head.
    wait_for(lambda: trials_at(cluster, 1), 300)
    cluster.kill_node(1)
    assert driver.wait(300) == 0, (project.folder / "driver.log").read_text()
    assert len(searching(project)) == 1  # a lost trial does not start the step again
    [there] = store.records.find(StepRecord, ("status", "=", "ran"))
    with open_store(project.folder / "other") as other:
        here = run_graph(Graph.wire([loop.search]), other)
    again = run_graph(Graph.wire([loop.search]), store)
    assert again.step("search").status == "cached"
    assert again.value("search") == here.value("search")
    assert len(here.value("search")["leaderboard"]) == 6
    assert there.attempts == 1


def test_a_node_that_is_killed_loses_nothing(loop: Any, project: Project, store: Store, cluster: RayCluster) -> None:
    driver = start_driver(project, store, cluster)
    # Wait until an element runs on the second node.
    wait_for(lambda: set(started(project)) & set(cluster.processes(1)), 300)
    cluster.kill_node(1)
    release(project, "go")
    assert driver.wait(300) == 0, (project.folder / "driver.log").read_text()
    assert_complete(store)
    elements = store.records.find(StepRecord, ("name", "prefix", "square["))
    assert {element.attempts for element in elements} == {1}  # a lost node is not an attempt of the step's own
    assert len(started(project)) > 6  # the elements of the lost node have started twice


def test_a_run_whose_head_is_killed_ends_with_its_reason_and_resumes(
    loop: Any, project: Project, store: Store, head: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray tries to reach a lost head for 15 s otherwise.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3")
    driver = start_driver(project, store, head)
    release(project, "go-0")
    wait_for(lambda: store.records.find(StepRecord, ("status", "=", "ran")), 300)
    head.kill_node(0)
    assert driver.wait(240) != 0
    [run] = store.records.find(Run)
    assert run.state == "failed"
    assert "connection to the Ray cluster" in (run.error or "")
    kept = {step.name for step in store.records.find(StepRecord, ("status", "=", "ran"))}
    release(project, "go")
    with trace() as graph:
        loop.square.map(list(range(6)), until="go")
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
from everloop.pipeline import Graph, run_graph, trace
from everloop.stores import open_store
import loop

if sys.argv[4] == "search":
    graph = Graph.wire([loop.search])
else:
    with trace() as graph:
        loop.square.map(list(range(6)), until="go")
with open_store(sys.argv[2]) as store:
    run_graph(graph, store, executor=sys.argv[3])
"""


def start_driver(project: Project, store: Store, cluster: RayCluster, step: str = "square") -> subprocess.Popen[bytes]:
    script = project.folder / "driver_script.py"
    script.write_text(DRIVER)
    command = [sys.executable, str(script), str(project.folder), str(store.home), f"ray://{cluster.address}", step]
    with (project.folder / "driver.log").open("wb") as log:
        return subprocess.Popen(command, stderr=log)


def release(project: Project, name: str) -> None:
    """Let an element end that waits for this file."""
    (project.folder / name).touch()


def assert_ended(project: Project) -> None:
    """No process that has started an element is left."""
    processes = started(project)
    assert processes
    wait_for(lambda: not any(Path(f"/proc/{process}").exists() for process in processes), 60)


def started(project: Project) -> list[int]:
    """The process of each element that has started, once for each start."""
    return [int(path.name.rpartition("-")[2]) for path in project.folder.glob("at-*")]


def searching(project: Project) -> list[int]:
    """The process of each start of the step `search`."""
    return [int(path.name.rpartition("-")[2]) for path in project.folder.glob("search-*")]


def trials_at(cluster: RayCluster, index: int) -> list[int]:
    """The processes of a node that run a trial of a search."""
    return cluster.processes(index, "everloop:run_trial")


def assert_complete(store: Store) -> None:
    """Every element has one record and one artifact, and the whole has the results in order."""
    elements = store.records.find(StepRecord, ("name", "prefix", "square["))
    assert sorted(element.name for element in elements) == [f"square[{number}]" for number in range(6)]
    assert {element.status for element in elements} == {"ran"}
    artifacts = store.records.find(Artifact, ("step", "prefix", "square"))
    assert sorted(artifact.step for artifact in artifacts) == ["square", *(f"square[{number}]" for number in range(6))]
