"""Compiled pipelines as processes of this machine, with records in the store."""

import pytest
from tests.integrations.kubeflow.pipeline_files import (
    artifact_of,
    component,
    definitions,
    input_of,
    output_of,
    pipeline,
    python_executor,
    task,
)

from everloop.errors import StepError, UsageError
from everloop.integrations.kubeflow.pipeline_run import run_pipeline
from everloop.integrations.kubeflow.pipeline_spec import parse_pipeline
from everloop.records import Artifact, Run
from everloop.stores import open_store

DOUBLE = python_executor("def double(num: int) -> int:\n    return 2 * num\n", "double")
TOTAL = python_executor("def total(nums: List[int]) -> int:\n    return sum(nums)\n", "total")
FAIL = python_executor("def fail(text: str) -> str:\n    print('about', text)\n    raise SystemExit(3)\n", "fail")
NUM = definitions({"num": "NUMBER_INTEGER"})
INT = definitions({"Output": "NUMBER_INTEGER"})
TEXT = definitions({"Output": "STRING"})


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / ".everloop") as opened:
        yield opened


def two_doublings(**changes):
    return pipeline(
        {"first": task("double", num=input_of("x")), "second": task("double", num=output_of("first"))},
        {"double": component("double", NUM, INT)},
        {"double": DOUBLE},
        inputs=definitions({"x": {"parameterType": "NUMBER_INTEGER", "defaultValue": 5.0}}),
        outputs={"Output": ("second", "Output")},
        **changes,
    )


def test_outputs_flow_and_are_recorded_with_lineage(store):
    result = run_pipeline(parse_pipeline(two_doublings()), store)
    assert result.parameters == {"Output": 20}
    steps = {step.name: step for step in result.steps}
    assert steps["second"].depends_on == ("first",)
    assert [steps[name].status for name in ("first", "second")] == ["ran", "ran"]
    run = store.records.get(Run, result.run)
    assert run.state == "finished"
    assert run.params == {"x": 5}
    (made,) = store.records.find(Artifact, ("step", "=", "second"))
    assert made.id == steps["second"].outputs["Output"]


@pytest.mark.slow
def test_equal_tasks_come_from_the_cache_and_others_run(store):
    spec = parse_pipeline(two_doublings())
    run_pipeline(spec, store, params={"x": 3})
    again = run_pipeline(spec, store, params={"x": "3"})
    assert [step.status for step in again.steps] == ["cached", "cached"]
    assert again.parameters == {"Output": 12}
    assert [step.status for step in run_pipeline(spec, store, params={"x": 4}).steps] == ["ran", "ran"]
    assert [step.status for step in run_pipeline(spec, store, params={"x": 4}, cache=False).steps] == ["ran", "ran"]


@pytest.mark.parametrize("params", [{"y": 1}, {"x": "many"}, {"x": 1.5}])
def test_parameters_that_do_not_fit_are_refused_before_anything_runs(store, params):
    with pytest.raises(UsageError, match=r"'x'|'y'"):
        run_pipeline(parse_pipeline(two_doublings()), store, params=params)
    assert store.records.find(Run) == []


def loop_over(items):
    loop = {
        "dag": {
            "tasks": {"double": task("double", num=input_of("item"))},
            "outputs": {
                "parameters": {
                    "all": {"valueFromParameter": {"producerSubtask": "double", "outputParameterKey": "Output"}}
                }
            },
        },
        "inputDefinitions": definitions({"item": "NUMBER_INTEGER"}),
        "outputDefinitions": definitions({"all": "NUMBER_INTEGER"}),
    }
    looping = task("loop", cache=False)
    looping["parameterIterator"] = {"itemInput": "item", "items": {"raw": items}}
    looping["iteratorPolicy"] = {"parallelismLimit": 2}
    return pipeline(
        {"loop": looping, "total": task("total", nums=output_of("loop", "all"))},
        {
            "loop": loop,
            "double": component("double", NUM, INT),
            "total": component("total", definitions({"nums": "LIST"}), INT),
        },
        {"double": DOUBLE, "total": TOTAL},
        outputs={"Output": ("total", "Output")},
    )


def test_a_loop_collects_its_outputs_in_order(store):
    result = run_pipeline(parse_pipeline(loop_over("[3, 1, 2]")), store)
    assert result.parameters == {"Output": 12}
    total = next(step for step in result.steps if step.name == "total")
    assert set(total.depends_on) == {"loop[0]/double", "loop[1]/double", "loop[2]/double"}
    assert run_pipeline(parse_pipeline(loop_over("[]")), store).parameters == {"Output": 0}


@pytest.mark.parametrize("items", ["5", "not json", '["a"]'])
def test_a_loop_over_something_else_fails_with_the_reason(store, items):
    with pytest.raises(StepError, match=r"list|integer"):
        run_pipeline(parse_pipeline(loop_over(items)), store)


def test_a_false_condition_skips_what_needs_it(store):
    conditional = task("double", num=1)
    conditional["inputs"]["parameters"]["flag"] = {"runtimeValue": {"constant": False}}
    conditional["triggerPolicy"] = {"condition": "inputs.parameter_values['flag'] == true"}
    text = pipeline(
        {"maybe": conditional, "after": task("double", num=output_of("maybe")), "other": task("double", num=4)},
        {"double": component("double", definitions({"num": "NUMBER_INTEGER", "flag": _OPTIONAL_FLAG}), INT)},
        {"double": python_executor("def double(num: int, flag: bool = True) -> int:\n    return 2 * num\n", "double")},
    )
    result = run_pipeline(parse_pipeline(text), store)
    assert {step.name: step.status for step in result.steps} == {"maybe": "skipped", "after": "skipped", "other": "ran"}


_OPTIONAL_FLAG = {"parameterType": "BOOLEAN", "isOptional": True}


def test_an_exit_handler_runs_after_a_failure_and_knows_of_it(store):
    body = {"dag": {"tasks": {"fail": task("fail", text="this")}}}
    ending = task("note", cache=False, status={"taskFinalStatus": {"producerTask": "body"}}, needs=("body",))
    ending["triggerPolicy"] = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    text = pipeline(
        {"body": task("body", cache=False), "ending": ending},
        {
            "body": body,
            "fail": component("fail", definitions({"text": "STRING"}), TEXT),
            "note": component("note", definitions({"status": "TASK_FINAL_STATUS"}), TEXT),
        },
        {
            "fail": FAIL,
            "note": python_executor(
                "def note(status: PipelineTaskFinalStatus) -> str:\n"
                "    return f'{status.state} {status.pipeline_task_name} {\"about this\" in status.error_message}'\n",
                "note",
            ),
        },
    )
    result = run_pipeline(parse_pipeline(text), store, check=False)
    assert isinstance(result.error, StepError)
    assert "about this" in str(result.error)
    ended = next(step for step in result.steps if step.name == "ending")
    stored = store.records.get(Artifact, ended.outputs["Output"])
    assert store.objects.read(stored.digest).decode().strip('"') == "FAILED body True"
    assert store.records.get(Run, result.run).state == "failed"


def test_artifacts_keep_bytes_and_metadata_and_metrics_are_logged(store):
    make = python_executor(
        """
        def make(data: Output[Dataset], scores: Output[Metrics]):
            with open(data.path, "w") as file:
                file.write("rows")
            data.metadata["count"] = 4
            scores.log_metric("accuracy", 0.75)
        """,
        "make",
    )
    read = python_executor(
        """
        def read(data: Input[Dataset]) -> str:
            return open(data.path).read() + str(data.metadata["count"])
        """,
        "read",
    )
    text = pipeline(
        {"make": task("make"), "read": task("read", data=artifact_of("make", "data"))},
        {
            "make": component("make", None, definitions(None, {"data": "system.Dataset", "scores": "system.Metrics"})),
            "read": component("read", definitions(None, {"data": "system.Dataset"}), TEXT),
        },
        {"make": make, "read": read},
        outputs={"Output": ("read", "Output")},
    )
    result = run_pipeline(parse_pipeline(text), store)
    assert result.parameters == {"Output": "rows4"}
    assert store.records.get(Run, result.run).metrics == {"accuracy": 0.75}
    again = run_pipeline(parse_pipeline(text), store)
    assert {step.status for step in again.steps} == {"cached"}
    # The consumer runs with the bytes of a cached artifact, whose own file is long gone.
    changed = text.replace("str(data.metadata", "'!' + str(data.metadata")
    assert run_pipeline(parse_pipeline(changed), store).parameters == {"Output": "rows!4"}


def test_containers_run_by_their_command_without_a_shell_of_ours(store):
    write = {
        "container": {
            "image": "alpine",
            "command": ["sh", "-c", 'printf "%s" "$0" > "$1"'],
            "args": ["{{$.inputs.parameters['text']}}", "{{$.outputs.parameters['out'].output_file}}"],
            "env": [{"name": "GREETING", "value": "hi"}],
        }
    }
    text = pipeline(
        {"write": task("write", text="a; rm -rf $HOME `id` {{$.pipeline_task_name}}")},
        {"write": component("write", definitions({"text": "STRING"}), definitions({"out": "STRING"}))},
        {"write": write},
        outputs={"out": ("write", "out")},
    )
    assert run_pipeline(parse_pipeline(text), store).parameters == {"out": "a; rm -rf $HOME `id` write"}


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"image": "x/y"}, "no command"),
        ({"image": "x/y", "command": ["a-program-of-the-image"]}, "does not have"),
        (
            {
                "image": "x/y",
                "command": ["python3", "-m", "kfp.dsl.executor_main"],
                "args": ["--executor_input", "{{$}}", "--function_to_execute", "f"],
            },
            "only in the image",
        ),
        ({"image": "x/y", "command": ["sh", "-c", "echo gone; exit 4"]}, "code 4"),
    ],
)
def test_containers_that_cannot_run_here_say_why(store, container, message):
    text = pipeline({"one": task("one")}, {"one": component("one")}, {"one": {"container": container}})
    with pytest.raises(StepError, match=message):
        run_pipeline(parse_pipeline(text), store)


def test_a_failing_task_is_tried_again(store, tmp_path):
    flaky = python_executor(
        """
        def flaky(path: str) -> int:
            import pathlib
            with open(path, "a") as file:
                file.write("x")
            count = len(pathlib.Path(path).read_text())
            if count < 3:
                raise RuntimeError("not yet")
            return count
        """,
        "flaky",
    )
    trying = task("flaky", path=str(tmp_path / "count"))
    trying["retryPolicy"] = {"maxRetryCount": 3, "backoffDuration": "0s", "backoffFactor": 2.0}
    text = pipeline(
        {"flaky": trying}, {"flaky": component("flaky", definitions({"path": "STRING"}), INT)}, {"flaky": flaky}
    )
    (step,) = run_pipeline(parse_pipeline(text), store).steps
    assert (step.status, step.attempts) == ("ran", 3)


def test_an_importer_takes_a_file_with_metadata(store, tmp_path):
    (tmp_path / "data.txt").write_text("imported")
    importer = {
        "importer": {
            "artifactUri": {"runtimeParameter": "uri"},
            "metadata": {"kind": "{{$.inputs.parameters['kind']}}"},
            "typeSchema": {"schemaTitle": "system.Dataset"},
        }
    }
    read = python_executor(
        "def read(data: Input[Dataset]) -> str:\n    return open(data.path).read() + data.metadata['kind']\n", "read"
    )
    parts = (
        {
            "bring": task("bring", uri=input_of("path"), kind="csv"),
            "read": task("read", data=artifact_of("bring", "artifact")),
        },
        {
            "bring": component(
                "bring",
                definitions({"uri": "STRING", "kind": "STRING"}),
                definitions(None, {"artifact": "system.Dataset"}),
            ),
            "read": component("read", definitions(None, {"data": "system.Dataset"}), TEXT),
        },
        {"bring": importer, "read": read},
    )
    spec = parse_pipeline(
        pipeline(*parts, inputs=definitions({"path": "STRING"}), outputs={"Output": ("read", "Output")})
    )
    result = run_pipeline(spec, store, params={"path": str(tmp_path / "data.txt")})
    assert result.parameters == {"Output": "importedcsv"}
    with pytest.raises(StepError, match="cannot find"):
        run_pipeline(spec, store, params={"path": str(tmp_path / "nothing")})
