"""From a graph to its plan."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from everloop.pipeline.binding import set_params, targets_of
from everloop.pipeline.code.step_code import Code, code_of
from everloop.pipeline.graph_plan import Plan, PlanNode, Port
from everloop.pipeline.plan_inputs import encode_inputs
from everloop.pipeline.resources import parse_amount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from everloop.pipeline.graph import Graph, Node
    from everloop.stores import Store


def compile_plan(
    graph: Graph,
    store: Store | None = None,
    *,
    targets: Iterable[str] | None = None,
    params: Mapping[str, Any] | None = None,
) -> Plan:
    """Compile a graph, or the part of it that `targets` need. Nothing runs.

    Args:
        store: keeps the code bundle, and parameters that are not plain data. Without it, the plan has no bundle, and
            names only the class of such a parameter.
        params: parameters to set, as for `run_graph`.

    Raises:
        GraphError: an unknown target.
        UsageError: an unknown parameter, or an amount of a resource that cannot be read.
        StepError: a parameter can neither be written as JSON nor be stored.
    """
    order = targets_of(graph, targets)
    nodes = set_params(graph, params or {})
    codes = {name: code_of(nodes[name].step.function) for name in order}
    objects = store.objects if store is not None else None
    plan = compile_nodes(graph.name, [nodes[name] for name in order], codes)
    inputs = {name: encode_inputs(nodes[name].inputs, name, objects) for name in order}
    plan = replace(plan, nodes=tuple(replace(node, inputs=inputs[node.name]) for node in plan.nodes))
    if objects is None:
        return plan
    from everloop.pipeline.code.code_bundles import keep_bundle

    return replace(plan, bundle=keep_bundle([name for node in plan.nodes for name in node.modules], objects))


def compile_nodes(name: str, nodes: Iterable[Node], codes: Mapping[str, Code]) -> Plan:
    """The plan of nodes whose parameters are set and whose code is known, without their inputs: jobs carry these."""
    return Plan(name, tuple(_compile_node(node, codes[node.name]) for node in nodes))


def _compile_node(node: Node, code: Code) -> PlanNode:
    step = node.step
    function = inspect.unwrap(step.function)
    annotations = _annotations(function)
    return PlanNode(
        name=node.name,
        module=str(getattr(step, "__module__", "") or ""),
        qualname=str(getattr(step, "__qualname__", "") or step.name),
        code=code.digest,
        takes=tuple(Port(name, annotations.get(name, "")) for name in node.inputs),
        gives=() if node.mapped else tuple(Port(name) for name in step.outputs),
        needs=node.needs,
        mapped=node.mapped,
        retries=step.retries,
        backoff_s=float(step.backoff_s),
        timeout_s=None if step.timeout_s is None else float(step.timeout_s),
        cache=step.cache,
        version=step.version,
        resources={name: parse_amount(amount) for name, amount in step.resources.items()},
        environment=step.environment,
        on_driver=step.on_driver,
        modules=tuple(sorted(code.modules)),
        packages=dict(code.packages),
    )


def _annotations(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter name to its annotation as text."""
    try:
        found = dict(getattr(function, "__annotations__", {}))
    except NameError:
        return {}
    return {name: one if isinstance(one, str) else inspect.formatannotation(one) for name, one in found.items()}
