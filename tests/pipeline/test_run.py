"""What runs, what is cached, what is recorded, and how failures end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from everloop import plugins
from everloop.errors import ContractError, GraphError, StepError, StepOutputError, UsageError
from everloop.pipeline import Graph, Listener, Step, current_step, plan, run_graph, step, trace
from everloop.pipeline.type_annotations import matches
from everloop.records import Artifact, Run, StepRun as StepRecord
from everloop.stores import observe
from everloop.tracking import start_run

if TYPE_CHECKING:
    from conftest import Project
    from everloop.pipeline import GraphRun
    from everloop.stores import Store

LOOP = """
    from everloop.pipeline import step
    import helpers

    @step
    def source():
        return [3, 14, 15]

    @step
    def prepare(source, scale=2):
        return [helpers.clip(row) * scale for row in source]

    @step
    def total(prepare):
        return {"total": sum(prepare)}

    @step
    def label(total):
        return f"total is {total['total'] > 0}"
"""
HELPERS = """
    from limits import LIMIT

    def clip(value):
        return min(value, LIMIT)
"""


def statuses(result: GraphRun) -> dict[str, str]:
    return {record.name: record.status for record in result.steps}


def reasons(result: GraphRun) -> dict[str, str]:
    return {record.name: record.reason for record in result.steps if record.status == "ran"}


def turn(project: Project, store: Store, **options: Any) -> GraphRun:
    loop = project.load()
    return run_graph(Graph.wire([loop.label]), store, **options)


@pytest.fixture
def four(project: Project) -> Project:
    project.edit(loop=LOOP, helpers=HELPERS, limits="LIMIT = 10")
    return project


def test_everything_runs_once_and_is_found_again(four: Project, store: Store) -> None:
    first = turn(four, store)
    assert reasons(first) == dict.fromkeys(["source", "prepare", "total", "label"], "first run")
    assert first.value("total") == {"total": 46}
    again = turn(four, store)
    assert set(statuses(again).values()) == {"cached"}
    assert again.value("label") == "total is True"
    assert again.artifact("total").id == first.artifact("total").id


@pytest.mark.parametrize("suffix", ["\n    # a comment", '\n    """A docstring."""', "\n\n\n"])
def test_nothing_runs_for_comments_docstrings_and_layout(four: Project, store: Store, suffix: str) -> None:
    turn(four, store)
    four.edit(
        loop=LOOP.replace("return [helpers", "# why\n        return [helpers").replace(
            "def total(prepare):", 'def total(prepare):\n        """Sum."""'
        )
        + suffix,
        helpers=HELPERS.replace("return min(value, LIMIT)", "return min(\n            value,\n            LIMIT)"),
    )
    assert set(statuses(turn(four, store)).values()) == {"cached"}


def test_a_constant_behind_two_helpers_runs_the_step_and_what_follows(four: Project, store: Store) -> None:
    turn(four, store)
    four.edit(limits="LIMIT = 4")
    assert reasons(turn(four, store)) == {
        "prepare": "code changed: limits.LIMIT",
        "total": "input changed: prepare",
        "label": "input changed: total",
    }


def test_what_gives_the_same_result_cuts_off_what_follows(four: Project, store: Store) -> None:
    turn(four, store)
    four.edit(helpers=HELPERS.replace("min(value, LIMIT)", "LIMIT if value > LIMIT else value"))
    result = turn(four, store)
    assert statuses(result) == {"source": "cached", "prepare": "ran", "total": "cached", "label": "cached"}
    assert reasons(result) == {"prepare": "code changed: helpers.clip"}


def test_parameters_are_set_by_name_or_by_step(four: Project, store: Store) -> None:
    turn(four, store)
    result = turn(four, store, params={"scale": 3})
    assert reasons(result)["prepare"] == "parameter changed: scale"
    assert result.value("total") == {"total": 69}
    assert set(statuses(turn(four, store, params={"prepare.scale": 3})).values()) == {"cached"}
    assert store.records.get(Run, result.run).params == {"scale": 3}
    with pytest.raises(UsageError, match=r"No step has a parameter 'scael'\. Did you mean 'scale'"):
        turn(four, store, params={"scael": 3})
    with pytest.raises(UsageError, match="cannot be set: step 'prepare' takes it from another step"):
        turn(four, store, params={"source": 3})


def test_versions_forcing_and_targets(four: Project, store: Store) -> None:
    turn(four, store)
    forced = turn(four, store, force=["prepare"])
    assert reasons(forced) == {"prepare": "forced"}
    assert set(statuses(turn(four, store, force=True)).values()) == {"ran"}
    four.edit(loop=LOOP.replace("@step\n    def total", "@step(version=2)\n    def total"))
    assert reasons(turn(four, store))["total"] == "version changed: none → 2"
    assert set(statuses(turn(four, store, targets=["prepare"]))) == {"source", "prepare"}
    for wrong in ({"targets": ["prepaer"]}, {"force": ["prepaer"]}):
        with pytest.raises(GraphError, match="Did you mean 'prepare'"):
            turn(four, store, **wrong)


def test_a_package_of_another_version_is_named(four: Project, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.pipeline.code import code_parts

    four.edit(loop=LOOP.replace("return [3", "import polars\n        len(polars.__name__)\n        return [3"))
    monkeypatch.setattr(code_parts, "find_distribution", lambda module: ("polars", "1.2"))
    turn(four, store)
    four.forget()
    monkeypatch.setattr(code_parts, "find_distribution", lambda module: ("polars", "1.3"))
    assert reasons(turn(four, store)) == {"source": "package changed: polars 1.2 → 1.3"}


@pytest.mark.slow
def test_a_step_that_is_not_cached_always_runs(store: Store) -> None:
    @step(cache=False)
    def now() -> float:
        return time.perf_counter()

    graph = Graph.wire([now])
    run_graph(graph, store)
    assert reasons(run_graph(graph, store)) == {"now": "not cached"}


def test_an_artifact_that_is_gone_is_made_again(four: Project, store: Store) -> None:
    first = turn(four, store)
    store.objects.remove(first.artifact("prepare").digest)
    assert reasons(turn(four, store)) == {"prepare": "artifact missing"}


def table_state(spec: dict[str, Any], since: str | None = None) -> str:
    return Path(spec["path"]).read_text()


def table_change(before: str, after: str) -> str:
    return f"{before} is now {after}"


def test_outside_state_is_looked_at_again(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outside", sys.modules[__name__])
    monkeypatch.setitem(plugins.TABLE["observation"], "test", "outside:table_state")
    monkeypatch.setitem(plugins.TABLE["observation_change"], "test", "outside:table_change")
    table = tmp_path / "table"

    @step
    def read(path: Path = table) -> str:
        text = path.read_text()
        observe("test", {"path": str(path)}, text)
        return text.upper()

    @step
    def use(read: str) -> int:
        return len(read)

    graph = Graph.wire([use, read])
    table.write_text("one")
    assert run_graph(graph, store).step("read").observed[0]["state"] == "one"
    assert set(statuses(run_graph(graph, store)).values()) == {"cached"}
    table.write_text("three")
    said = f"source changed: {table} (one is now three)"
    assert plan(graph, store)[0].reason == said
    changed = run_graph(graph, store)
    assert reasons(changed) == {"read": said, "use": "input changed: read"}
    assert changed.value("read") == "THREE"
    # What was seen before, and kept, serves again when the outside goes back to it.
    table.write_text("one")
    back = run_graph(graph, store)
    assert set(statuses(back).values()) == {"cached"}
    assert back.value("read") == "ONE"
    # What cannot be looked at any more has changed: the step says what is wrong.
    table.unlink()
    assert plan(graph, store)[0].reason == f"source changed: {table} (it cannot be read now)"
    with pytest.raises(StepError, match="FileNotFoundError"):
        run_graph(graph, store)


def test_frames_come_in_the_declared_form(store: Store, tmp_path: Path) -> None:
    seen: list[type] = []

    @step
    def rows() -> pl.LazyFrame:
        return pl.LazyFrame({"a": [1, 2, 3]})

    @step
    def eager(rows: pl.DataFrame) -> pl.DataFrame:
        seen.append(type(rows))
        rows[0, "a"] = 100  # in place: must not reach anybody else
        return rows

    @step
    def lazy(rows: pl.LazyFrame, eager: pl.DataFrame | None) -> int:
        seen.extend([type(rows), type(eager)])
        return int(rows.select(pl.col("a").sum()).collect().item())

    result = run_graph(Graph.wire([lazy, eager, rows]), store)
    assert seen == [pl.DataFrame, pl.LazyFrame, pl.DataFrame]
    assert result.value("lazy") == 6
    assert result.value("eager")["a"].to_list() == [100, 2, 3]
    assert result.artifact("rows").meta["rows"] == 3


def test_types_that_are_imported_for_type_checkers_only_count(project: Project, store: Store) -> None:
    project.edit(
        loop="""
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from everloop.pipeline import step

        if TYPE_CHECKING:
            import polars as pl
            from polars import LazyFrame
            from no_such_module import Thing

        @step
        def rows() -> LazyFrame:
            import polars
            return polars.LazyFrame({"a": [1, 2]})

        @step
        def kind(rows: pl.DataFrame, more: Thing | None = None) -> str:
            return type(rows).__name__

        @step
        def wrong(rows: pl.LazyFrame) -> pl.DataFrame:
            return rows
    """
    )
    loop = project.load()
    assert run_graph(Graph.wire([loop.kind]), store).value("kind") == "DataFrame"
    with pytest.raises(StepOutputError, match=r"returns polars.DataFrame, but it returned a polars.LazyFrame"):
        run_graph(Graph.wire([loop.wrong]), store)


def test_frames_in_memory_are_not_shared_between_steps(store: Store) -> None:
    @step
    def rows() -> pl.DataFrame:
        return pl.DataFrame({"a": [1, 2, 3]})

    @step
    def spoil(rows: pl.DataFrame) -> int:
        rows[0, "a"] = 100
        rows.columns = ["b"]
        return 1

    @step
    def total(rows: pl.DataFrame, spoil: int) -> int:
        return int(rows["a"].sum())

    assert run_graph(Graph.wire([total, spoil, rows]), store).value("total") == 6


def test_several_outputs(store: Store) -> None:
    @step(outputs=("train", "test"))
    def split(n: int = 4) -> dict[str, list[int]]:
        return {"test": [n], "train": list(range(n))}

    @step
    def fit(train: list[int]) -> int:
        return len(train)

    @step
    def both(split: dict[str, list[int]]) -> list[str]:
        return sorted(split)

    graph = Graph.wire([fit, both, split])
    result = run_graph(graph, store)
    assert result.value("split") == {"train": [0, 1, 2, 3], "test": [4]}
    assert result.value("split.test") == [4]
    assert result.value("both") == ["test", "train"]
    assert result.artifact("split.train").name == "split.train"
    assert set(statuses(run_graph(graph, store)).values()) == {"cached"}
    with pytest.raises(GraphError, match="several outputs"):
        result.artifact("split")
    with pytest.raises(GraphError, match=r"no output 'tset'\. It has: train, test"):
        result.value("split.tset")


CALLS: list[Any] = []


@step
def numbers(upto: int = 3) -> list[int]:
    return list(range(upto))


@step
def square(number: int, power: int = 2) -> int:
    CALLS.append(number)
    return int(number**power)


@step
def add(squares: list[int]) -> int:
    return sum(squares)


def test_each_element_of_a_map_is_cached_on_its_own(store: Store) -> None:
    with trace() as graph:
        add(numbers().map(square))
    CALLS.clear()
    first = run_graph(graph, store)
    assert (first.value("add"), first.value("square"), CALLS) == (5, [0, 1, 4], [0, 1, 2])
    assert [record.name for record in first.steps] == [
        "numbers",
        "square[0]",
        "square[1]",
        "square[2]",
        "square",
        "add",
    ]
    CALLS.clear()
    wider = run_graph(graph, store, params={"upto": 5})
    assert (wider.value("add"), CALLS) == (30, [3, 4])
    assert wider.step("square").reason == "input changed: number (2 of 5 elements ran)"
    CALLS.clear()
    run_graph(graph, store, params={"square.power": 3, "upto": 2})
    assert CALLS == [0, 1]
    assert statuses(run_graph(graph, store, params={"upto": 5}))["square"] == "cached"
    assert CALLS == [0, 1]


def test_a_map_over_frames_values_and_nothing(store: Store) -> None:
    @step
    def height(frame: pl.DataFrame) -> int:
        return frame.height

    @step
    def not_a_list() -> int:
        return 3

    with trace() as graph:
        height.map([pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [1, 2]})])
    assert run_graph(graph, store).value("height") == [1, 2]
    assert statuses(run_graph(graph, store))["height"] == "cached"
    with trace() as graph:
        add(square.map([]))
    assert run_graph(graph, store).value("add") == 0
    with trace() as graph:
        square.map(not_a_list())
    with pytest.raises(GraphError, match="fans out over 'number', which is a int, not a list"):
        run_graph(graph, store)


def test_a_failure_stops_the_rest_and_is_recorded(store: Store) -> None:
    @step
    def good() -> int:
        return 1

    @step
    def bad(good: int) -> int:
        raise ValueError(f"not {good}\0\ud800")

    @step
    def after(bad: int) -> int:
        return bad

    @step
    def beside(good: int) -> int:
        return good

    graph = Graph.wire([good, bad, after, beside])
    with pytest.raises(StepError, match="Step 'bad' failed: ValueError: not 1") as raised:
        run_graph(graph, store)
    assert isinstance(raised.value.__cause__, ValueError)
    result = run_graph(graph, store, check=False)
    assert statuses(result) == {"good": "cached", "bad": "failed", "after": "skipped", "beside": "skipped"}
    assert result.failed is not None
    assert "in bad" in str(result.failed.error)
    assert "turn.py" not in str(result.failed.error)
    assert result.step("after").reason == "'bad' failed"
    assert store.records.get(Run, result.run).state == "failed"
    with pytest.raises(GraphError, match="Step 'after' has no result: it was skipped"):
        result.value("after")


def test_errors_of_everloop_stay_what_they_are(store: Store) -> None:
    @step
    def refuse() -> None:
        raise ContractError("2 rows break the contract.", help="See: everloop data show")

    with pytest.raises(ContractError) as raised:
        run_graph(Graph.wire([refuse]), store)
    assert raised.value.__notes__ == ["In step 'refuse'."]


def test_retries_wait_longer_each_time(store: Store) -> None:
    moments: list[float] = []
    told: list[float] = []

    class Ear(Listener):
        def on_retry(self, name: str, error: BaseException, wait_s: float) -> None:
            told.append(wait_s)

    @step(retries=3, backoff_s=0.02)
    def shaky() -> int:
        moments.append(time.perf_counter())
        if len(moments) < 4:
            raise OSError("again")
        return len(moments)

    result = run_graph(Graph.wire([shaky]), store, listener=Ear())
    assert result.value("shaky") == 4
    assert result.step("shaky").attempts == 4
    assert len(told) == 3
    for number, wait_s in enumerate(told):
        assert 0.01 * 2**number <= wait_s <= 0.03 * 2**number
        assert moments[number + 1] - moments[number] >= wait_s


def test_retries_end(store: Store) -> None:
    @step(retries=1, backoff_s=0)
    def hopeless() -> None:
        raise OSError("never")

    result = run_graph(Graph.wire([hopeless]), store, check=False)
    assert result.step("hopeless").attempts == 2


def returns_none() -> pl.DataFrame:
    return None  # type: ignore[return-value]


def returns_text() -> list[int]:
    return "no"  # type: ignore[return-value]


def returns_rows() -> Any:
    return (row for row in range(3))


OUTPUTS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (returns_none, {}, "declares that it returns polars.DataFrame, but it returned None"),
    (returns_text, {}, "declares that it returns list[int], but it returned a str ('no')"),
    (returns_rows, {}, "returned a generator that cannot be stored: it cannot be pickled"),
    (lambda: (1, 2, 3), {"outputs": ("a", "b")}, "declares the outputs a, b, but it returned 3 values"),
    (lambda: {"a": 1}, {"outputs": ("a", "b")}, "but it returned a dict with the keys 'a'"),
    (lambda: 1, {"outputs": ("a",)}, "but it returned a int"),
]


@pytest.mark.parametrize(("function", "options", "message"), OUTPUTS)
def test_a_result_is_what_was_declared(
    store: Store, function: Callable[[], Any], options: dict[str, Any], message: str
) -> None:
    graph = Graph.wire([Step(function, name="made", retries=2, backoff_s=0, **options)])
    with pytest.raises(StepOutputError) as raised:
        run_graph(graph, store)
    assert message in str(raised.value)
    assert "Step 'made'" in str(raised.value)
    # A wrong type stays wrong: it is not tried again.
    assert store.records.find(StepRecord)[-1].attempts == 1


NUMBERS: list[tuple[Any, Any]] = [
    (3, float), (np.float32(1), float), (np.int64(1), int), (None, int | None), (True, int), ({"a": 1}, dict[str, int]),
    ("a", Literal["a", "b"]), ([1], Sequence[int]), (np.zeros(2), NDArray[np.float64]), (len, Callable), (1, Any),
]  # fmt: skip
NO_NUMBERS: list[tuple[Any, Any]] = [
    (1.5, int), ("1", float), (None, int), ("c", Literal["a", "b"]), ((1,), list[int]), (1, str | None), (0, NoneType),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), NUMBERS)
def test_what_type_checkers_accept_is_accepted(value: Any, annotation: Any) -> None:
    assert matches(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), NO_NUMBERS)
def test_what_they_refuse_is_refused(value: Any, annotation: Any) -> None:
    assert not matches(value, annotation)


def test_equal_elements_are_computed_once(store: Store) -> None:
    with trace() as graph:
        square.map([7, 7, 7])
    CALLS.clear()
    result = run_graph(graph, store)
    assert (result.value("square"), CALLS) == ([49, 49, 49], [7])


def test_an_interrupt_leaves_whole_steps_only(store: Store) -> None:
    @step
    def done() -> int:
        return 1

    @step
    def slow(done: int) -> int:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(30)
        return 1

    @step
    def after(slow: int) -> int:
        return slow

    graph = Graph.wire([after, slow, done])
    with pytest.raises(KeyboardInterrupt):
        run_graph(graph, store)
    records = {record.name: record for record in store.records.find(StepRecord)}
    assert {name: record.status for name, record in records.items()} == {
        "done": "ran",
        "slow": "interrupted",
        "after": "skipped",
    }
    assert [artifact.step for artifact in store.records.find(Artifact)] == ["done"]
    assert store.records.find(Run)[0].state == "interrupted"


def test_a_step_knows_where_it_is(store: Store) -> None:
    @step
    def train() -> str:
        context = current_step()
        assert context is not None
        context.log({"loss": 0.5}, step=1)
        context.log(loss=0.25, step=2)
        assert context.store is store
        return f"{context.run} {context.name} {context.attempt}"

    assert current_step() is None
    with start_run("outer", store=store) as run:
        result = run_graph(Graph.wire([train]), store, run=run)
        assert result.run == run.id
    assert result.value("train") == f"{run.id} train 1"
    record = store.records.get(Run, run.id)
    assert record.metrics == {"loss": 0.25}
    assert record.state == "finished"
    assert str(record.source.code).startswith("code:")


def test_a_step_may_call_steps(store: Store) -> None:
    @step
    def outer() -> int:
        return square(3) + square.map([1, 2])[1]

    assert run_graph(Graph.wire([outer]), store).value("outer") == 13


def test_listeners_hear_everything_in_order(four: Project, store: Store) -> None:
    heard: list[str] = []

    class Ear(Listener):
        def on_begin(self, names: Any) -> None:
            heard.append(f"begin {len(names)}")

        def on_start(self, name: str, reason: str) -> None:
            heard.append(f"start {name}: {reason}")

        def on_finish(self, step: StepRecord) -> None:
            heard.append(f"{step.status} {step.name}")

        def on_end(self) -> None:
            heard.append("end")

    turn(four, store, targets=["source"])
    turn(four, store, targets=["prepare"], listener=Ear())
    assert heard == ["begin 2", "cached source", "start prepare: first run", "ran prepare", "end"]


def test_records_tell_the_whole_story(four: Project, store: Store) -> None:
    result = turn(four, store)
    prepare = store.records.find(StepRecord, ("name", "=", "prepare"))[0]
    assert prepare.depends_on == ("source",)
    assert prepare.inputs == {"source": result.artifact("source").digest}
    assert prepare.fingerprint.startswith("fp:")
    assert prepare.code.startswith("code:")
    assert {"code:loop.prepare", "code:limits.LIMIT", "input:source", "param:scale"} < set(prepare.parts)
    artifact = store.records.get(Artifact, prepare.outputs["result"])
    assert (artifact.run, artifact.step, artifact.type) == (result.run, "prepare", "json")


def test_results_from_before_the_newest_records_are_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from everloop.pipeline import cache

    monkeypatch.setattr(cache, "_NEWEST", 0)
    graph = Graph.wire([numbers])
    run_graph(graph, store, params={"upto": 1})
    for upto in range(2, 8):
        run_graph(graph, store, params={"upto": upto})
    assert statuses(run_graph(graph, store, params={"upto": 1})) == {"numbers": "cached"}
    assert plan(graph, store, params={"upto": 2})[0].status == "cached"


def test_a_plan_says_what_would_happen(four: Project, store: Store) -> None:
    def planned(**options: Any) -> dict[str, str]:
        return {one.name: one.reason for one in plan(Graph.wire([four.load().label]), store, **options)}

    assert planned() == {
        "source": "first run",
        "prepare": "first run; follows source",
        "total": "first run; follows prepare",
        "label": "first run; follows total",
    }
    assert not store.records.find(StepRecord)
    turn(four, store)
    assert set(planned().values()) == {"cached"}
    four.edit(limits="LIMIT = 3")
    assert planned() == {
        "source": "cached",
        "prepare": "code changed: limits.LIMIT",
        "total": "follows prepare",
        "label": "follows total",
    }
    assert planned(force=["source"])["source"] == "forced"
    assert planned(params={"scale": 7})["prepare"] == "code changed: limits.LIMIT; parameter changed: scale"


RULE = """
    from dataclasses import dataclass

    from everloop.pipeline import step
    import helpers

    @dataclass
    class Rule:
        limit: int

        def answer(self, value):
            return helpers.clip(value) > self.limit

    @step
    def rules() -> list:
        return [Rule(5), Rule]

    @step
    def answers(rules):
        return [rules[0].answer(value) for value in (1, 7, 20)]
"""


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"loop": RULE.replace("> self.limit", "< self.limit")}, [True, False, False]),
        ({"helpers": "def clip(value): return min(value, 4)"}, [False, False, False]),
    ],
)
def test_edited_methods_of_a_returned_object_reach_the_steps_that_follow(
    project: Project, store: Store, edit: dict[str, str], expected: list[bool]
) -> None:
    project.edit(loop=RULE, helpers="def clip(value): return min(value, 10)")
    first = run_graph(Graph.wire([project.load().answers, project.load().rules]), store)
    assert first.value("answers") == [False, True, True]
    project.forget()
    again = run_graph(Graph.wire([project.load().answers, project.load().rules]), store)
    assert {one.status for one in again.steps} == {"cached"}
    project.edit(**edit)
    edited = run_graph(Graph.wire([project.load().answers, project.load().rules]), store)
    assert edited.value("answers") == expected
    # The same object with the same code has the same bytes, so what follows is not run again.
    forced = run_graph(Graph.wire([project.load().answers, project.load().rules]), store, force=["rules"])
    assert [one.status for one in forced.steps if one.name == "answers"] == ["cached"]
