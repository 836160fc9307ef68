"""Binding of a graph's inputs: parameters that are set from outside, and results of earlier steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError, UsageError
from everloop.pipeline.artifacts.lists import ListFormat, load_elements
from everloop.pipeline.graph import Graph, Node, Ref, check_nesting, find_refs, replace_refs
from everloop.pipeline.job import StoredInput, StoredOutputs
from everloop.pipeline.steps import RESULT
from everloop.pipeline.unknown_names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.pipeline.artifacts import Stored


def set_params(graph: Graph, params: Mapping[str, Any]) -> dict[str, Node]:
    """The graph's nodes with parameters replaced: `name` in every step that has it, `step.name` in one.

    Raises:
        UsageError: no step has that parameter, or the steps take it from another step.
        GraphError: a value contains itself.
    """
    nodes = dict(graph.nodes)
    for key, value in params.items():
        step, dot, name = key.rpartition(".")
        candidates = [graph.get(step)] if dot else list(graph.nodes.values())
        with_input = [node for node in candidates if name in node.inputs and name != node.mapped]
        settable = [node for node in with_input if name in node.params]
        if not settable:
            if with_input:
                raise UsageError(
                    f"'{key}' cannot be set: step '{with_input[0].name}' takes it from another step.",
                    help=f"Set a parameter of step '{next(find_refs(with_input[0].inputs[name])).node}' instead.",
                )
            known = sorted({name for node in candidates for name in node.params})
            raise UsageError(f"No step has a parameter '{key}'.", help=nearest_names(name, known))
        for node in settable:
            check_nesting(value, node.name, name)
            current = nodes[node.name]
            nodes[node.name] = Node(current.name, current.step, {**current.inputs, name: value}, current.mapped)
    return nodes


def bind_inputs(node: Node, results: Mapping[str, Mapping[str, Stored]]) -> dict[str, Any]:
    """The node's inputs with `StoredInput` and `StoredOutputs` instead of references."""

    def replace(ref: Ref) -> Any:
        outputs = results[ref.node]
        if ref.output is not None:
            return StoredInput(outputs[ref.output])
        if set(outputs) == {RESULT}:
            return StoredInput(outputs[RESULT])
        return StoredOutputs(dict(outputs))

    return {name: replace_refs(value, replace) for name, value in node.inputs.items()}


def elements_of(node: Node, value: Any, objects: Any) -> list[Any]:
    """The elements that a node fans out over. Elements of a list artifact are not loaded.

    Raises:
        GraphError: the value is not a list or a tuple.
    """
    from everloop.pipeline.artifacts import load_value

    if isinstance(value, StoredInput):
        if value.stored.type == ListFormat.name:
            return [StoredInput(element) for element in load_elements(value.stored, objects)]
        value = load_value(value.stored, objects)
    if not isinstance(value, list | tuple):
        raise GraphError(
            f"Step '{node.name}' fans out over '{node.mapped}', which is a {type(value).__name__}, not a list.",
            help="Return a list from the step that it comes from.",
        )
    return list(value)


def targets_of(graph: Graph, targets: Iterable[str] | None) -> list[str]:
    """Names of the steps to run, in order. `targets` may also be a single name."""
    if isinstance(targets, str):
        targets = [targets]
    order = graph.order(targets)
    if not order:
        raise GraphError("There is no step to run.", help="Add one: graph.add(step), or Graph.wire([step, …]).")
    return order
