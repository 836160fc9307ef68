"""A graph bound to what is known: parameters set from outside, results of the steps that have one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError, UsageError
from everloop.pipeline.artifacts.lists import ListFormat, load_elements
from everloop.pipeline.graph import Graph, Node, Ref, find_refs, replace_refs
from everloop.pipeline.job import Bundle, Kept
from everloop.pipeline.steps import RESULT
from everloop.pipeline.unknown_names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.pipeline.artifacts import Stored


def set_params(graph: Graph, params: Mapping[str, Any]) -> dict[str, Node]:
    """The graph's nodes with parameters replaced: `name` in every step that has it, `step.name` in one.

    Raises:
        UsageError: nothing has that parameter, or it is not one but another step's output.
    """
    nodes = dict(graph.nodes)
    for key, value in params.items():
        step, dot, name = key.rpartition(".")
        homes = [graph.get(step)] if dot else list(graph.nodes.values())
        taking = [node for node in homes if name in node.inputs and name != node.mapped]
        free = [node for node in taking if name in node.params]
        if not free:
            if taking:
                raise UsageError(
                    f"'{key}' cannot be set: step '{taking[0].name}' takes it from another step.",
                    help=f"Set a parameter of step '{next(find_refs(taking[0].inputs[name])).node}' instead.",
                )
            known = sorted({name for node in homes for name in node.params})
            raise UsageError(f"No step has a parameter '{key}'.", help=nearest_names(name, known))
        for node in free:
            current = nodes[node.name]
            nodes[node.name] = Node(current.name, current.step, {**current.inputs, name: value}, current.mapped)
    return nodes


def bind_inputs(node: Node, results: Mapping[str, Mapping[str, Stored]]) -> dict[str, Any]:
    """The node's inputs with `Kept` and `Bundle` in the place of references."""

    def replace(ref: Ref) -> Any:
        outputs = results[ref.node]
        if ref.output is not None:
            return Kept(outputs[ref.output])
        if set(outputs) == {RESULT}:
            return Kept(outputs[RESULT])
        return Bundle(dict(outputs))

    return {name: replace_refs(value, replace) for name, value in node.inputs.items()}


def elements_of(node: Node, value: Any, objects: Any) -> list[Any]:
    """What a node fans out over, each element still kept where it can be.

    Raises:
        GraphError: it is no list.
    """
    from everloop.pipeline.artifacts import load_value

    if isinstance(value, Kept):
        if value.stored.type == ListFormat.name:
            return [Kept(element) for element in load_elements(value.stored, objects)]
        value = load_value(value.stored, objects)
    if not isinstance(value, list | tuple):
        raise GraphError(
            f"Step '{node.name}' fans out over '{node.mapped}', which is a {type(value).__name__}, not a list.",
            help="Return a list from the step before.",
        )
    return list(value)


def targets_of(graph: Graph, targets: Iterable[str] | None) -> list[str]:
    """Names in order of running; a single name is not taken for its letters."""
    if isinstance(targets, str):
        targets = [targets]
    order = graph.order(targets)
    if not order:
        raise GraphError("There is no step to run.", help="Add one: graph.add(step), or Graph.wire([step, …]).")
    return order
