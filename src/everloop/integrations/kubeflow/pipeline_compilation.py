"""Compiles a loop or a graph of steps to a pipeline of Kubeflow: YAML that kfp loads, runs locally and submits.

Each step becomes a lightweight Python component that calls `step_component`. Around them, an exit handler ends the run,
also if a step fails. Kubeflow's own cache is off: everloop's decides, with the same keys as everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from everloop.errors import MissingExtraError, UsageError
from everloop.integrations.kubeflow.step_component import RunOrder, keep_order
from everloop.pipeline.executors.job_specs import PARTS, local_parts
from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.integrations.kubeflow.pipeline_spec import Spec
    from everloop.loop import Loop
    from everloop.pipeline.graph import Graph
    from everloop.pipeline.graph_plan import Plan, PlanNode
    from everloop.records import Json
    from everloop.stores import Store

SDK_VERSION = "kfp-2.7.0"
"""The oldest kfp that reads what is written here."""
_LAUNCH = (
    'folder=$(mktemp -d)\nprintf "%s" "$0" > "$folder/component.py"\n'
    "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main"
    ' --component_module_path "$folder/component.py" "$@"\n'
)
_PRELUDE = "\nimport kfp\nfrom kfp import dsl\nfrom kfp.dsl import *\nfrom typing import *\n\n"
_ARTIFACT = {"artifactType": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}}
_TEXT = {"parameterType": "STRING"}
_BODY, _START, _FINISH = "exit-handler-1", "start-run", "finish-run"


def compile_pipeline(
    what: Loop | Graph,
    store: Store,
    *,
    params: Mapping[str, Json] | None = None,
    image: str | None = None,
    folder: Path | None = None,
) -> str:
    """Compile to the YAML of a pipeline. Its code and parameters are kept in the store.

    Args:
        params: parameters of steps, as for `run_loop`.
        image: image of the components. It needs this version of everloop, kfp, and the packages of the steps.
        folder: the project's folder. A component that sees it uses it; any other unpacks the code from the store.

    Raises:
        UsageError: a step is defined in a script, an unknown parameter, or a URL of the store holds a password.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(
            "Compiling for Kubeflow needs PyYAML.", help="Install it with: pip install 'everloop[kfp]'"
        ) from error
    from everloop.loop import Loop
    from everloop.loop.stages import graph_of
    from everloop.pipeline.binding import set_params
    from everloop.pipeline.plan_compilation import compile_plan

    graph = graph_of(what) if isinstance(what, Loop) else what
    plan = compile_plan(graph, store, params=params or {})
    script = next((node.name for node in plan.nodes if node.module == "__main__"), None)
    if script is not None:
        raise UsageError(
            f"Step '{script}' is defined in a script, which components cannot import.",
            help="Move it to a module, such as loop.py.",
        )
    nodes = set_params(graph, params or {})
    loop = what.name if isinstance(what, Loop) else None
    digest = keep_order(store, plan, nodes, loop=loop, params=params or {})
    order = _order(store, digest, folder)
    written: str = yaml.safe_dump(_pipeline(plan, order, image or f"everloop:{VERSION}"), sort_keys=False, width=120)
    return f"# Compiled by everloop {VERSION} from '{plan.name}'.\n{written}"


def compile(  # noqa: A001 - the word for it, as in el.compile
    what: Loop | Graph,
    output: Path | str,
    *,
    to: str = "kfp",
    store: Store | None = None,
    params: Mapping[str, Json] | None = None,
    image: str | None = None,
    folder: Path | None = None,
) -> Path:
    """Compile a loop or a graph for another engine, and write the file. Returns its path.

    Args:
        to: the engine; `kfp` is Kubeflow Pipelines.
        store: keeps code and parameters, and receives the records of later runs. Default: the nearest store.

    Raises:
        UsageError: an unknown engine, or anything that `compile_pipeline` raises.
    """
    if to != "kfp":
        raise UsageError(f"There is no engine '{to}' to compile for.", help="Use to='kfp'.")
    if store is None:
        from everloop.stores import shared_store

        store = shared_store()
    text = compile_pipeline(what, store, params=params, image=image, folder=folder)
    target = Path(output).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _order(store: Store, digest: str, folder: Path | None) -> RunOrder:
    local = local_parts(store.urls)
    urls = {part: str(getattr(store.urls, part)) for part in PARTS} if len(local) < len(PARTS) else {}
    for part, url in urls.items():
        if urlsplit(url).password:
            raise UsageError(
                f"The URL of the store's {part} holds a password, which the pipeline's file would show.",
                help="Leave it out of the URL; components take it from PGPASSWORD.",
            )
    return RunOrder(
        digest,
        project=store.project,
        home=str(store.home),
        urls=urls,
        folder=str((folder or Path(os.environ.get("EVERLOOP_PROJECT", "."))).absolute()),
    )


def _pipeline(plan: Plan, order: RunOrder, image: str) -> Spec:
    names = _task_names(plan)
    components: dict[str, Spec] = {}
    executors: dict[str, Spec] = {}

    def add(name: str, source: str, function: str, inputs: Spec, outputs: Spec, resources: Spec | None = None) -> None:
        components[f"comp-{name}"] = {"executorLabel": f"exec-{name}", "inputDefinitions": inputs}
        if outputs:
            components[f"comp-{name}"]["outputDefinitions"] = outputs
        container = {
            "args": ["--executor_input", "{{$}}", "--function_to_execute", function],
            "command": ["sh", "-ec", _LAUNCH, _PRELUDE + source],
            "image": image,
        }
        executors[f"exec-{name}"] = {"container": {**container, **({"resources": resources} if resources else {})}}

    add(_START, _START_SOURCE, "start_run", {"parameters": {"order": _TEXT}}, {"parameters": {"Output": _TEXT}})
    finishing = {"order": _TEXT, "run": _TEXT, "status": {"isOptional": True, "parameterType": "TASK_FINAL_STATUS"}}
    add(_FINISH, _FINISH_SOURCE, "finish_run", {"parameters": finishing}, {})
    tasks: dict[str, Spec] = {}
    for node in plan.nodes:
        name = names[node.name]
        inputs: Spec = {"parameters": {"order": _TEXT, "run": _TEXT}}
        if node.needs:
            inputs = {"artifacts": {_input(names[need]): _ARTIFACT for need in node.needs}, **inputs}
        add(name, _step_source(node, names), "run", inputs, {"artifacts": {"result": _ARTIFACT}}, _resources(node))
        tasks[name] = _step_task(node, names)
    body_inputs = {"pipelinechannel--order": _TEXT, "pipelinechannel--start-run-Output": _TEXT}
    components[f"comp-{_BODY}"] = {"dag": {"tasks": tasks}, "inputDefinitions": {"parameters": body_inputs}}
    run_id = {"taskOutputParameter": {"outputParameterKey": "Output", "producerTask": _START}}
    given = {"componentInputParameter": "order"}
    root_tasks = {
        _BODY: {
            "componentRef": {"name": f"comp-{_BODY}"},
            "dependentTasks": [_START],
            "inputs": {"parameters": {"pipelinechannel--order": given, "pipelinechannel--start-run-Output": run_id}},
            "taskInfo": {"name": _BODY},
        },
        _FINISH: {
            "cachingOptions": {},
            "componentRef": {"name": f"comp-{_FINISH}"},
            "dependentTasks": [_BODY, _START],
            "inputs": {
                "parameters": {"order": given, "run": run_id, "status": {"taskFinalStatus": {"producerTask": _BODY}}}
            },
            "taskInfo": {"name": _FINISH},
            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
        },
        _START: {
            "cachingOptions": {},
            "componentRef": {"name": f"comp-{_START}"},
            "inputs": {"parameters": {"order": given}},
            "taskInfo": {"name": _START},
        },
    }
    return {
        "components": components,
        "deploymentSpec": {"executors": executors},
        "pipelineInfo": {"name": _dashed(plan.name) or "pipeline"},
        "root": {
            "dag": {"tasks": root_tasks},
            "inputDefinitions": {
                "parameters": {"order": {**_TEXT, "defaultValue": order.to_json(), "isOptional": True}}
            },
        },
        "schemaVersion": "2.1.0",
        "sdkVersion": SDK_VERSION,
    }


_START_SOURCE = """def start_run(order: str) -> str:
    from everloop.integrations.kubeflow.step_component import begin

    return begin(order)
"""
_FINISH_SOURCE = """def finish_run(order: str, run: str, status: PipelineTaskFinalStatus):
    from everloop.integrations.kubeflow.step_component import finish

    finish(order, run, status.state, status.error_message)
"""


def _step_source(node: PlanNode, names: Mapping[str, str]) -> str:
    inputs = [_input(names[need]) for need in node.needs]
    arguments = ["order: str", "run: str", "result: Output[Artifact]", *(f"{one}: Input[Artifact]" for one in inputs)]
    passed = ", ".join(f"{need!r}: {one}" for need, one in zip(node.needs, inputs, strict=True))
    # The function's own name is hidden by its parameter `run`, so nothing else may be called by it.
    return (
        f"def run({', '.join(arguments)}):\n"
        "    from everloop.integrations.kubeflow.step_component import run_step\n\n"
        f"    run_step(order, {node.name!r}, run, {{{passed}}}, result)\n"
    )


def _step_task(node: PlanNode, names: Mapping[str, str]) -> Spec:
    parameters = {
        "order": {"componentInputParameter": "pipelinechannel--order"},
        "run": {"componentInputParameter": "pipelinechannel--start-run-Output"},
    }
    inputs: Spec = {"parameters": parameters}
    task: Spec = {"cachingOptions": {}, "componentRef": {"name": f"comp-{names[node.name]}"}}
    if node.needs:
        task["dependentTasks"] = sorted(names[need] for need in node.needs)
        inputs["artifacts"] = {
            _input(names[need]): {"taskOutputArtifact": {"outputArtifactKey": "result", "producerTask": names[need]}}
            for need in node.needs
        }
    return {**task, "inputs": inputs, "taskInfo": {"name": node.name}}


def _resources(node: PlanNode) -> Spec:
    found: dict[str, Any] = {}
    if "cpu" in node.resources:
        found["cpuLimit"] = float(node.resources["cpu"])
        found["resourceCpuLimit"] = f"{node.resources['cpu']:g}"
    if "memory" in node.resources:
        found["memoryLimit"] = node.resources["memory"] / 1e9
        found["resourceMemoryLimit"] = str(int(node.resources["memory"]))
    if node.resources.get("gpu"):
        count = f"{node.resources['gpu']:g}"
        found["accelerator"] = {
            "count": count,
            "type": "nvidia.com/gpu",
            "resourceCount": count,
            "resourceType": "nvidia.com/gpu",
        }
    return found


def _task_names(plan: Plan) -> dict[str, str]:
    """Step to the name of its task: lower case with dashes, and unlike every other."""
    found: dict[str, str] = {}
    taken = {_BODY, _START, _FINISH}
    for node in plan.nodes:
        base = _dashed(node.name) or "step"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        found[node.name] = name
    return found


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _input(task: str) -> str:
    return f"from_{task.replace('-', '_')}"
