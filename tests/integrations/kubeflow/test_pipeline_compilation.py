"""A graph compiled for Kubeflow and run from its file gives the results and lineage of a run here."""

import subprocess
import sys
from pathlib import Path

import pytest

from everloop.errors import UsageError
from everloop.integrations.kubeflow.pipeline_compilation import compile, compile_pipeline  # noqa: A004
from everloop.integrations.kubeflow.pipeline_run import run_pipeline
from everloop.integrations.kubeflow.pipeline_spec import read_pipeline
from everloop.pipeline import Graph, run_graph, step
from everloop.records import Run, StepRun

PROJECT = """
import everloop as el

@el.step
def numbers(count: int = 3) -> list:
    return list(range(count))

@el.step
def total(numbers: list) -> int:
    return sum(numbers)
"""


@pytest.mark.slow
def test_a_compiled_graph_has_the_results_and_lineage_of_a_run_here(store, tmp_path, monkeypatch):
    (tmp_path / "compiled_project.py").write_text(PROJECT)
    monkeypatch.syspath_prepend(str(tmp_path))
    import compiled_project

    graph = Graph.wire([compiled_project.numbers, compiled_project.total], name="sums")
    path = compile(graph, tmp_path / "sums.yaml", store=store, params={"count": 5}, folder=tmp_path)
    run_pipeline(read_pipeline(path), store)
    (run,) = store.records.find(Run, ("trigger", "=", "kubeflow"))
    assert run.state == "finished"
    there = {one.name: one for one in store.records.find(StepRun, ("run", "=", run.id))}
    here = run_graph(graph, store, params={"count": 5})
    assert here.value("total") == 10
    for name in ("numbers", "total"):
        assert there[name].status == "ran"
        assert here.step(name).status == "cached"
        assert there[name].fingerprint == here.step(name).fingerprint
        assert there[name].depends_on == here.step(name).depends_on
        assert there[name].outputs == here.step(name).outputs
    sys.modules.pop("compiled_project")


def test_a_step_of_a_script_is_refused(store, monkeypatch):
    @step
    def lone() -> int:
        return 1

    lone.__module__ = "__main__"
    with pytest.raises(UsageError, match="script"):
        compile_pipeline(Graph.wire([lone]), store)


def test_an_unknown_engine_is_refused(store, tmp_path):
    with pytest.raises(UsageError, match="engine 'argo'"):
        compile(Graph("none"), tmp_path / "x.yaml", to="argo", store=store)


@pytest.mark.slow
def test_kfp_itself_loads_what_is_compiled(store, tmp_path, need):
    python = Path(__file__).parents[3] / ".bench" / "kfp" / "bin" / "python"
    if not python.exists():
        need("kfp", "kfp in .bench/kfp", "see .ci/run")

    @step
    def lone() -> int:
        return 1

    path = compile(Graph.wire([lone], name="Lone one"), tmp_path / "lone.yaml", store=store)
    code = "import sys; from kfp import components; print(components.load_component_from_file(sys.argv[1]).name)"
    done = subprocess.run([python, "-W", "ignore", "-c", code, path], capture_output=True, text=True)
    assert done.stdout.strip() == "lone-one", done.stderr
