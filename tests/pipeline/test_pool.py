"""Steps in worker processes: in parallel, killed, lost, and always with the right code."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from everloop.errors import StepError, StepTimeoutError, UsageError, WorkerLostError
from everloop.pipeline import Graph, current_step, run_graph, step, trace
from everloop.pipeline.executors.pool import PoolExecutor
from everloop.pipeline.resources import parse_amount
from everloop.records import Run, StepRun as StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Project
    from everloop.stores import Store


@pytest.fixture
def pool() -> Iterator[PoolExecutor]:
    executor = PoolExecutor(workers=2)
    yield executor
    executor.close(kill=True)


LOOP = """
    import os
    from dataclasses import dataclass
    import polars as pl
    from everloop.pipeline import current_step, step
    from limits import LIMIT

    @dataclass
    class Model:
        weight: int

    @step
    def rows() -> pl.LazyFrame:
        return pl.LazyFrame({"a": range(LIMIT)})

    @step
    def model(rows: pl.DataFrame) -> Model:
        current_step().log(height=rows.height)
        return Model(rows["a"].sum())

    @step
    def check(model: Model):
        return {"is": isinstance(model, Model), "weight": model.weight, "process": os.getpid()}
"""


@pytest.mark.slow
def test_the_pool_does_what_inline_does(project: Project, store: Store, pool: PoolExecutor) -> None:
    project.edit(loop=LOOP, limits="LIMIT = 4")
    loop = project.load()
    result = run_graph(Graph.wire([loop.check]), store, executor=pool)
    seen = result.value("check")
    assert seen["process"] != os.getpid()
    assert (seen["is"], seen["weight"]) == (True, 6)
    assert type(result.value("model")) is loop.Model
    assert store.records.get(Run, result.run).metrics == {"height": 4}
    # What a worker made, this process finds.
    assert {record.status for record in run_graph(Graph.wire([loop.check]), store).steps} == {"cached"}

    # A warm worker has imported the old module; what runs is what is meant.
    project.edit(loop=LOOP, limits="LIMIT = 5")
    again = run_graph(Graph.wire([project.load().check]), store, executor=pool)
    assert again.value("check")["weight"] == 10
    assert again.step("rows").reason == "code changed: limits.LIMIT"

    # And when the file has moved on but this process has not, the code itself is sent.
    module = project.load()
    path = project.folder / "limits.py"
    path.write_text("LIMIT = 9")
    module.LIMIT = 6
    memory = run_graph(Graph.wire([module.check]), store, executor=pool)
    assert memory.value("check")["weight"] == 15


@pytest.mark.slow
def test_independent_steps_run_side_by_side(store: Store, pool: PoolExecutor, tmp_path: Any) -> None:
    def meet(own: str, other: str) -> int:
        (tmp_path / own).touch()
        deadline = time.monotonic() + 20
        while not (tmp_path / other).exists():
            assert time.monotonic() < deadline, "the other did not run at the same time"
            time.sleep(0.005)
        return os.getpid()

    @step
    def left() -> int:
        return meet("left", "right")

    @step
    def right() -> int:
        return meet("right", "left")

    result = run_graph(Graph.wire([left, right]), store, executor=pool)
    assert len({result.value("left"), result.value("right"), os.getpid()}) == 3


def test_resources_keep_steps_apart(store: Store, tmp_path: Any) -> None:
    @step(resources={"gpu": 1})
    def train(number: int) -> list[float]:
        began = time.monotonic()
        time.sleep(0.05)
        return [began, time.monotonic()]

    with trace() as graph:
        train.map([1, 2, 3])
    executor = PoolExecutor(workers=2, resources={"gpu": 1})
    spans = sorted(run_graph(graph, store, executor=executor).value("train"))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    with pytest.raises(UsageError, match="'train' needs the resource 'gpu', which this executor does not have"):
        run_graph(graph, store, executor=PoolExecutor(workers=1), force=True)


@pytest.mark.parametrize(
    ("amount", "number"), [(2, 2.0), ("4GB", 4e9), ("0.5 GiB", 2.0**29), ("3", 3.0), ("10 mb", 1e7)]
)
def test_amounts(amount: Any, number: float) -> None:
    assert parse_amount(amount) == number


@pytest.mark.parametrize("amount", ["much", "4 parsecs", -1, ""])
def test_what_is_no_amount_is_refused(amount: Any) -> None:
    with pytest.raises(UsageError, match="is not an amount of a resource"):
        parse_amount(amount)


def test_a_step_that_takes_too_long_is_killed(store: Store) -> None:
    @step(timeout_s=0.4)
    def stuck() -> None:
        # Nothing in Python can stop this: as in native code, no signal is looked at.
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(StepTimeoutError, match=r"Step 'stuck' took longer than its timeout of 0.4 s and was killed"):
        run_graph(Graph.wire([stuck]), store)  # inline: the step goes to a process of its own
    assert time.monotonic() - began < 20
    assert store.records.find(StepRecord)[-1].status == "failed"


def test_a_timeout_is_measured_from_the_start_of_the_function(store: Store) -> None:
    @step(timeout_s=0.4)
    def quick() -> int:
        return os.getpid()

    assert run_graph(Graph.wire([quick]), store).value("quick") != os.getpid()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_dead_worker_is_told_by_step_and_signal(
    store: Store, pool: PoolExecutor, number: signal.Signals, name: str
) -> None:
    @step
    def doomed() -> None:
        os.kill(os.getpid(), number)

    @step
    def beside() -> int:
        time.sleep(0.3)
        return 1

    result = run_graph(Graph.wire([doomed, beside]), store, executor=pool, check=False)
    assert isinstance(result.error, WorkerLostError)
    assert f"The worker of step 'doomed' was killed by {name}." in str(result.error)
    # What ran beside it is not lost.
    assert result.step("beside").status == "ran"


@pytest.mark.slow
def test_a_lost_worker_is_tried_again(store: Store, pool: PoolExecutor, tmp_path: Any) -> None:
    flag = str(tmp_path / "died")

    @step(retries=1, backoff_s=0)
    def fragile() -> str:
        if not os.path.exists(flag):  # noqa: PTH110
            os.mkdir(flag)  # noqa: PTH102
            os._exit(3)
        return "alive"

    result = run_graph(Graph.wire([fragile]), store, executor=pool)
    assert result.value("fragile") == "alive"
    assert result.step("fragile").attempts == 2


class OddError(Exception):
    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")


def test_errors_of_a_worker_come_with_their_traceback(store: Store, pool: PoolExecutor) -> None:
    @step
    def bad() -> None:
        def deep() -> None:
            raise KeyError("price")

        deep()

    @step
    def odd() -> None:
        raise OddError(3, why="cannot be made again")

    result = run_graph(Graph.wire([bad]), store, executor=pool, check=False)
    assert isinstance(result.error, StepError)
    assert isinstance(result.error.__cause__, KeyError)
    assert "in deep" in str(result.step("bad").error)
    with pytest.raises(StepError, match="OddError: 3: cannot be made again"):
        run_graph(Graph.wire([odd]), store, executor=pool)


def test_what_cannot_travel_says_so(store: Store, pool: PoolExecutor) -> None:
    lock = threading.Lock()

    @step
    def locked() -> bool:
        return lock.locked()

    with pytest.raises(StepError, match="Step 'locked' cannot be sent to a worker"):
        run_graph(Graph.wire([locked]), store, executor=pool)


def test_an_interrupt_ends_the_workers(store: Store, pool: PoolExecutor, tmp_path: Any) -> None:
    pid_file = tmp_path / "pid"

    @step
    def slow() -> None:
        pid_file.write_text(str(os.getpid()))
        time.sleep(60)

    def interrupt() -> None:
        while not pid_file.exists() or not pid_file.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_graph(Graph.wire([slow]), store, executor=pool)
    assert store.records.find(StepRecord)[-1].status == "interrupted"
    deadline = time.monotonic() + 10
    while _lives(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_worker_knows_its_step_too(store: Store, pool: PoolExecutor) -> None:
    @step
    def where(frame: pl.DataFrame) -> list[Any]:
        context = current_step()
        assert context is not None
        return [context.name, context.store.project, str(context.store.home), frame.height]

    with trace() as graph:
        where(pl.DataFrame({"a": [1, 2]}))
    assert run_graph(graph, store, executor=pool).value("where") == ["where", "default", str(store.home), 2]
