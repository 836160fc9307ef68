"""Plans are plain data: a round trip through JSON loses nothing, and equal projects give equal plans."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from everloop.errors import CorruptionError, GraphError, StepError, UsageError
from everloop.pipeline import Graph, Plan, PlanNode, Port, Step, compile_plan, run_graph, step, trace
from everloop.pipeline.artifacts import Stored, load_value
from everloop.pipeline.code.code_bundles import CodeBundle, collect_bundle, same_files
from everloop.pipeline.job import StoredInput, StoredOutputs
from everloop.pipeline.plan_inputs import decode_inputs, encode_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Project
    from everloop.stores import Store

LOOP = """
    import polars as pl
    from everloop.pipeline import step
    import helper

    @step(retries=2, timeout_s=30, resources={"memory": "2GB", "gpu": 1}, version=3)
    def rows(n: int = 4, since: str = "now") -> pl.DataFrame:
        return pl.DataFrame({"a": range(helper.LIMIT)})

    @step(outputs=("low", "high"))
    def halves(rows: pl.DataFrame):
        return rows[:2], rows[2:]

    @step
    def total(low: pl.DataFrame) -> int:
        return low["a"].sum()
"""

names = st.text("abcdefgh_", min_size=1, max_size=8)
plain: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.dates()
    | st.timedeltas(dt.timedelta(-99), dt.timedelta(99)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda text: f"sha256:{text}")
stored = st.builds(Stored, names, digests, st.integers(0, 2**40), st.dictionaries(names, st.integers()), st.none())
bound: st.SearchStrategy[Any] = st.recursive(
    plain | stored.map(StoredInput) | st.dictionaries(names, stored, min_size=1, max_size=2).map(StoredOutputs),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner),
    max_leaves=6,
)
nodes = st.builds(
    PlanNode,
    name=names,
    module=names,
    qualname=names,
    code=digests,
    takes=st.lists(st.builds(Port, names, st.text(max_size=9)), max_size=3).map(tuple),
    gives=st.lists(st.builds(Port, names), max_size=3).map(tuple),
    inputs=st.dictionaries(names, bound, max_size=3).map(lambda found: encode_inputs(found, "s", None)),
    needs=st.lists(names, max_size=3).map(tuple),
    mapped=st.none() | names,
    retries=st.integers(0, 9),
    backoff_s=st.floats(0, 100),
    timeout_s=st.none() | st.floats(0.1, 1e6),
    cache=st.booleans(),
    version=st.none() | names,
    resources=st.dictionaries(names, st.floats(0, 1e12)),
    environment=st.lists(names, max_size=2).map(tuple),
    on_driver=st.booleans(),
    modules=st.lists(names, max_size=3).map(tuple),
    packages=st.dictionaries(names, names),
)
plans = st.builds(Plan, names, st.lists(nodes, max_size=4).map(tuple), st.none() | digests)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(plans)
def test_a_plan_is_the_same_after_a_round_trip_through_json(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.digest == plan.digest


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, bound, max_size=3))
def test_inputs_are_the_same_after_a_round_trip_through_json(inputs: dict[str, Any]) -> None:
    again = decode_inputs(json.loads(json.dumps(encode_inputs(inputs, "s", None))))
    assert again == inputs
    assert repr(again) == repr(inputs)  # 1 == 1.0 == True, but they are different parameters


def test_a_plan_holds_what_an_executor_needs_and_no_path(project: Project, store: Store) -> None:
    project.edit(loop=LOOP, helper="LIMIT = 4\n")
    graph = Graph.wire([project.load().halves, project.load().total])
    plan = compile_plan(graph, store, params={"rows.n": 7})
    assert [node.name for node in plan.nodes] == ["rows", "halves", "total"]
    rows = plan.get("rows")
    assert (rows.module, rows.qualname, rows.retries, rows.timeout_s, rows.version) == ("loop", "rows", 2, 30.0, "3")
    assert rows.resources == {"memory": 2e9, "gpu": 1.0}
    assert decode_inputs(rows.inputs) == {"n": 7, "since": "now"}
    assert rows.takes == (Port("n", "int"), Port("since", "str"))
    assert [port.name for port in plan.get("halves").gives] == ["low", "high"]
    assert plan.get("total").needs == ("halves",)
    assert set(rows.modules) == {"loop", "helper"}
    assert str(project.folder) not in plan.to_json()
    assert str(store.home) not in plan.to_json()
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(GraphError, match="no step 'totl'"):
        plan.get("totl")


@pytest.mark.slow
def test_the_bundle_of_a_plan_is_the_project_and_changes_with_it(
    project: Project, store: Store, tmp_path: Path
) -> None:
    project.edit(loop=LOOP, helper="LIMIT = 4\n", unused="")
    graph = Graph.wire([project.load().halves, project.load().total])
    before = compile_plan(graph, store)
    assert before == compile_plan(graph, store)
    bundle = CodeBundle.from_bytes(store.objects.read(before.bundle))
    assert bundle.modules == {"helper": "helper.py", "loop": "loop.py"}
    files = bundle.unpack(tmp_path / "there")
    assert bundle.unpack(tmp_path / "there") == files
    assert (tmp_path / "there" / "helper.py").read_text() == "LIMIT = 4\n"
    assert same_files(bundle, files)
    (tmp_path / "there" / "helper.py").write_text("LIMIT = 5\n")
    assert not same_files(bundle, files)
    project.edit(helper="LIMIT = 5\n")
    assert compile_plan(Graph.wire([project.load().halves, project.load().total]), store).bundle != before.bundle


def test_a_bundle_keeps_packages_and_their_parents(project: Project, store: Store, tmp_path: Path) -> None:
    text = "from everloop.pipeline import step\nfrom deep.inner import NAME\n\n@step\ndef name():\n    return NAME\n"
    project.edit(deep__inner="from deep import NAME\n", steps=text)
    (project.folder / "deep" / "__init__.py").write_text("NAME = 'deep'\n")
    bundle, files = collect_bundle(compile_plan(Graph.wire([project.load("steps").name])).get("name").modules)
    assert set(bundle.files) == {"steps.py", "deep/__init__.py", "deep/inner.py"}
    assert files["deep.inner"] == str(project.folder / "deep" / "inner.py")


@pytest.mark.parametrize("path", ["../x.py", "/x.py", "a/../../x.py"])
def test_a_bundle_cannot_write_outside_of_its_folder(path: str) -> None:
    with pytest.raises(CorruptionError, match="holds the path"):
        CodeBundle.from_bytes(json.dumps({"files": {path: ""}, "modules": {}}).encode())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "name": "", "nodes": [], "bundle": null}', "null"])
def test_text_that_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(CorruptionError, match=r"not a plan|has the format"):
        Plan.from_json(text)


@pytest.mark.slow
def test_parameters_that_are_not_plain_are_stored_with_the_plan(store: Store) -> None:
    frame = pl.DataFrame({"a": [1, 2]})

    @step
    def rows(frame: Any, opened: Any = None) -> int:
        return 0

    with trace() as graph:
        rows(frame)
    with_store = compile_plan(graph, store)
    found = decode_inputs(with_store.get("rows").inputs)["frame"]
    assert load_value(found.stored, store.objects).equals(frame)
    without = compile_plan(graph)
    assert without.bundle is None
    assert without.get("rows").inputs["frame"] == {"held": "polars.dataframe.frame.DataFrame"}
    with pytest.raises(CorruptionError, match="no value that can be read"):
        decode_inputs(without.get("rows").inputs)
    with trace() as graph, (store.home / "x").open("w") as file:
        rows(frame, [file])
        with pytest.raises(StepError, match="parameter 'opened' of step 'rows'"):
            compile_plan(graph, store)


def test_compiling_reads_the_amounts_of_resources() -> None:
    made = Step(lambda: 0, name="big", resources={"memory": "many"})
    graph = Graph()
    graph.add(made)
    with pytest.raises(UsageError, match="'many' is not an amount"):
        compile_plan(graph)


def test_a_step_with_an_environment_needs_an_executor_that_can_create_it(store: Store) -> None:
    made = Step(lambda: 0, name="own", environment=["torch==2.5.1"])
    graph = Graph()
    graph.add(made)
    for executor in ("inline", "pool"):
        with pytest.raises(UsageError, match=r"declares an environment \(torch==2.5.1\)"):
            run_graph(graph, store, executor=executor)
    with pytest.raises(UsageError, match="declares environment="):
        Step(lambda: 0, environment=[""])
    with pytest.raises(UsageError, match="on_driver"):
        Step(lambda: 0, environment=["x"], on_driver=True)
