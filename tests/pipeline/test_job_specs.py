"""Jobs as plain data, and what a node answers to them. Each node is a process of its own; none of these needs Ray."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from everloop.errors import CorruptionError, StoreError, UsageError
from everloop.pipeline import Graph, PlanNode, compile_plan
from everloop.pipeline.code.code_bundles import collect_bundle
from everloop.pipeline.code.step_code import code_of
from everloop.pipeline.executors.job_specs import JobSpec, local_parts, make_spec, this_machine, unreachable_part
from everloop.pipeline.executors.ray import ray_options
from everloop.pipeline.executors.ray_worker import Unreachable
from everloop.pipeline.executors.step_pickles import pickle_for_worker
from everloop.pipeline.executors.worker import Failed, Stale
from everloop.pipeline.job import Job, JobOutcome
from everloop.stores import trust
from everloop.tracking import start_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Project
    from everloop.stores import Store

LOOP = """
    import os, sys
    from everloop.pipeline import step
    from limits import LIMIT

    @step
    def total(numbers: list, opened: str = "") -> dict:
        print("loud")
        file = sys._getframe().f_code.co_filename
        return {"sum": sum(numbers) + LIMIT, "folder": os.getcwd(), "file": file, "key": os.environ.get("SECRET_KEY")}
"""
NODE = """
import sys
from everloop.pipeline.executors.ray_worker import run_spec
sys.stdout.buffer.write(run_spec(sys.stdin.buffer.read()))
"""


@pytest.fixture
def spec(project: Project, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobSpec]:
    project.edit(loop=LOOP, limits="LIMIT = 100\n")
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    monkeypatch.chdir(project.folder)
    step = project.load().total
    node = compile_plan(Graph.wire([step], given={"numbers": [1, 2]})).get("total")
    bundle, files = collect_bundle(node.modules)
    with start_run("specs", store=store) as run:
        job = Job("total", node, step, {"numbers": [1, 2], "opened": ""}, run.id, dict(code_of(step.function).modules))
        yield make_spec(
            job,
            store,
            function=store.objects.add(pickle_for_worker(step, job, by_value=False)),
            by_name=True,
            bundle=store.objects.add(bundle.to_bytes()),
            modules=files,
            key=trust.Keyring().public_key(),
        )


def answer(spec: JobSpec, tmp_path: Path) -> Any:
    """What a fresh process answers, which has a temporary folder of its own."""
    (tmp_path / "node").mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "node")}
    environment.pop("SECRET_KEY")
    done = subprocess.run(
        [sys.executable, "-c", NODE], input=spec.to_json(), capture_output=True, env=environment, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr.decode()
    return pickle.loads(done.stdout)  # noqa: S301 - from the process above


def test_a_spec_is_the_same_after_a_round_trip_and_hides_secrets(spec: JobSpec) -> None:
    assert JobSpec.from_json(spec.to_json()) == spec
    assert spec.variables["SECRET_KEY"] == "s3cret"
    assert "s3cret" not in repr(spec)
    assert not {"PATH", "HOME", "PYTHONPATH"} & spec.variables.keys()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"node": {}, "local": null}'])
def test_data_that_is_not_a_job_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="not a job"):
        JobSpec.from_json(data)


@pytest.mark.slow
def test_a_node_with_the_same_files_runs_the_step_there(
    spec: JobSpec, project: Project, store: Store, tmp_path: Path
) -> None:
    outcome = answer(spec, tmp_path)
    assert isinstance(outcome, JobOutcome)
    value = json.loads(store.objects.read(outcome.outputs["result"].digest))
    folder = str(project.folder)
    assert value == {"sum": 103, "folder": folder, "file": f"{folder}/loop.py", "key": "s3cret"}


@pytest.mark.slow
def test_a_node_with_other_files_unpacks_the_bundle(
    spec: JobSpec, project: Project, store: Store, tmp_path: Path
) -> None:
    # The run has imported 100; the file has changed since. The node must not run other code than the run's.
    (project.folder / "limits.py").write_text("LIMIT = 5\n")
    outcome = answer(spec, tmp_path)
    value = json.loads(store.objects.read(outcome.outputs["result"].digest))
    assert value["sum"] == 103
    assert value["file"].startswith(str(tmp_path / "node"))


@pytest.mark.slow
def test_a_node_does_not_run_other_code_than_the_run_has(spec: JobSpec, tmp_path: Path) -> None:
    other = replace(spec, node=replace(spec.node, code="code:0"), code="code:0")
    assert answer(other, tmp_path) == Stale(outdated=True)


@pytest.mark.slow
def test_a_node_of_another_machine_cannot_use_an_sqlite_file(spec: JobSpec, tmp_path: Path) -> None:
    assert spec.local is not None
    found = answer(replace(spec, local=replace(spec.local, machine="elsewhere 1")), tmp_path)
    assert isinstance(found, Unreachable)
    assert (found.part, found.reason) == ("records", "is an SQLite file on the machine 'elsewhere'")


@pytest.mark.slow
def test_a_node_finds_out_that_a_folder_is_not_there(spec: JobSpec, tmp_path: Path) -> None:
    assert spec.local is not None
    assert unreachable_part(spec.local) is None
    parts = {**spec.local.parts, "objects": str(tmp_path / "no" / "objects")}
    found = unreachable_part(replace(spec.local, parts=parts))
    assert found == ("objects", "does not exist there, or cannot be written")
    # Only SQLite needs the same machine.
    shared = {name: path for name, path in spec.local.parts.items() if name != "records"}
    assert unreachable_part(replace(spec.local, machine="elsewhere 1", parts=shared)) is None
    assert spec.local.machine == this_machine()


@pytest.mark.slow
def test_a_node_with_another_store_at_that_path_does_not_use_it(spec: JobSpec, tmp_path: Path) -> None:
    failed = answer(replace(spec, run="0197aaaa-0000-7000-8000-000000000000"), tmp_path)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error("total"), StoreError)
    assert "does not find run 0197aaaa" in failed.message
    failed = answer(replace(spec, bundle="sha256:" + "0" * 64), tmp_path)
    assert "in the objects of the store" in failed.message


def test_a_node_with_another_everloop_says_so(spec: JobSpec, tmp_path: Path) -> None:
    failed = answer(replace(spec, everloop="0.0.1"), tmp_path)
    assert isinstance(failed.error("total"), UsageError)
    assert "but the run uses 0.0.1" in failed.message


@pytest.mark.slow
def test_a_node_refuses_a_folder_that_others_can_write(spec: JobSpec, project: Project, tmp_path: Path) -> None:
    (project.folder / "limits.py").write_text("LIMIT = 5\n")
    open_to_all = tmp_path / "node" / f"everloop-{os.getuid()}"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    failed = answer(spec, tmp_path)
    assert "others can use it" in failed.message


def test_parts_with_urls_are_not_local(store: Store) -> None:
    assert set(local_parts(store.urls)) == {"records", "objects", "tables"}
    urls = replace(store.urls, records="postgresql://u@h/d", objects="s3://b/o", tables="file:///mnt/t")
    assert local_parts(urls) == {"tables": "/mnt/t"}


@pytest.mark.parametrize(
    ("resources", "options"),
    [
        ({}, {"num_cpus": 1.0}),
        ({"cpu": 2.0, "gpu": 0.5}, {"num_cpus": 2.0, "num_gpus": 0.5}),
        ({"memory": 2e9, "tpu": 1.0}, {"num_cpus": 1.0, "memory": 2_000_000_000, "resources": {"tpu": 1.0}}),
    ],
)
def test_resources_become_options_of_ray(resources: dict[str, float], options: dict[str, Any]) -> None:
    node = PlanNode(name="s", module="m", qualname="s", code="c", resources=resources)
    assert ray_options(node) == options
    own = ray_options(replace(node, environment=("torch==2.5.1",)))
    assert own == {**options, "runtime_env": {"pip": ["torch==2.5.1"]}}
