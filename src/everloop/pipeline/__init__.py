"""Steps -> graph -> plan -> run: what a step's code consists of, when its result can be reused, and where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.pipeline.artifacts import (
        ArtifactFormat as ArtifactFormat,
        Stored as Stored,
        keep_value as keep_value,
        load_value as load_value,
    )
    from everloop.pipeline.code.step_code import Code as Code, code_of as code_of
    from everloop.pipeline.context import StepContext as StepContext, current_step as current_step
    from everloop.pipeline.executors import Executor as Executor
    from everloop.pipeline.graph import Each as Each, Graph as Graph, Node as Node, Ref as Ref, trace as trace
    from everloop.pipeline.graph_plan import Plan as Plan, PlanNode as PlanNode, Port as Port
    from everloop.pipeline.plan_compilation import compile_plan as compile_plan
    from everloop.pipeline.planning import Planned as Planned, plan as plan
    from everloop.pipeline.result import GraphRun as GraphRun
    from everloop.pipeline.run import run_graph as run_graph
    from everloop.pipeline.run_listener import Listener as Listener
    from everloop.pipeline.step_progress import (
        StepProgress as StepProgress,
        progress as progress,
        watch_steps as watch_steps,
    )
    from everloop.pipeline.steps import Step as Step, step as step

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "artifacts": ["ArtifactFormat", "Stored", "keep_value", "load_value"],
        "code.step_code": ["Code", "code_of"],
        "context": ["StepContext", "current_step"],
        "executors": ["Executor"],
        "graph": ["Each", "Graph", "Node", "Ref", "trace"],
        "graph_plan": ["Plan", "PlanNode", "Port"],
        "plan_compilation": ["compile_plan"],
        "planning": ["Planned", "plan"],
        "result": ["GraphRun"],
        "run": ["run_graph"],
        "run_listener": ["Listener"],
        "step_progress": ["StepProgress", "progress", "watch_steps"],
        "steps": ["Step", "step"],
    },
)
