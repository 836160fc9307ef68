"""Steps -> graph -> plan -> run: what the code of a step is, when its result can be reused, and where it runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.pipeline.artifacts import ArtifactFormat, Stored, keep_value, load_value
    from everloop.pipeline.code import Code, code_of
    from everloop.pipeline.context import StepContext, current_step
    from everloop.pipeline.executors import Executor
    from everloop.pipeline.graph import Each, Graph, Node, Ref, trace
    from everloop.pipeline.listener import Listener
    from everloop.pipeline.planning import Planned, plan
    from everloop.pipeline.reporting import StepProgress, progress, watch_steps
    from everloop.pipeline.result import GraphRun
    from everloop.pipeline.run import run_graph
    from everloop.pipeline.steps import Step, step

_HOME = {
    "ArtifactFormat": "artifacts",
    "Code": "code",
    "Each": "graph",
    "Executor": "executors",
    "Graph": "graph",
    "GraphRun": "result",
    "Listener": "listener",
    "Node": "graph",
    "Planned": "planning",
    "Ref": "graph",
    "Step": "steps",
    "StepContext": "context",
    "StepProgress": "reporting",
    "Stored": "artifacts",
    "code_of": "code",
    "current_step": "context",
    "keep_value": "artifacts",
    "load_value": "artifacts",
    "plan": "planning",
    "progress": "reporting",
    "run_graph": "run",
    "step": "steps",
    "trace": "graph",
    "watch_steps": "reporting",
}

__all__ = [
    "ArtifactFormat",
    "Code",
    "Each",
    "Executor",
    "Graph",
    "GraphRun",
    "Listener",
    "Node",
    "Planned",
    "Ref",
    "Step",
    "StepContext",
    "StepProgress",
    "Stored",
    "code_of",
    "current_step",
    "keep_value",
    "load_value",
    "plan",
    "progress",
    "run_graph",
    "step",
    "trace",
    "watch_steps",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
