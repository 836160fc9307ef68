"""Graphs of steps, built by tracing calls, by the names of parameters, or node by node.

    with trace() as graph:                      graph = Graph.wire([flights, weather, prepare])
        table = prepare(flights(), weather())

A graph is data: nodes, and edges from outputs to inputs. Nothing runs here.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError
from everloop.pipeline.steps import Output, Step, tracing
from everloop.pipeline.unknown_names import nearest_names
from everloop.pipeline.wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_EMPTY = inspect.Parameter.empty
_MOST_LEVELS = 100
"""Python's limit of recursion allows a few hundred levels, of which the caller may have used some."""


@dataclass(frozen=True, slots=True)
class Each:
    """An input over whose elements a node fans out: a list of values, or the output of a step."""

    values: Any


@dataclass(frozen=True)
class Ref:
    """A reference to the future output of a node, to pass to other steps. `ref["train"]` is one of several outputs."""

    node: str
    output: str | None = None
    graph: Graph | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, output: str) -> Ref:
        declared = self._declared()
        if output not in declared:
            raise GraphError(
                f"Step '{self.node}' has no output '{output}'.",
                help=f"It has: {', '.join(declared)}" if declared else 'Declare them with @step(outputs=("a", "b")).',
            )
        return Ref(self.node, output, self.graph)

    def __iter__(self) -> Iterator[Ref]:
        declared = self._declared()
        if not declared:
            raise GraphError(
                f"The output of step '{self.node}' is not known until the step has run, so it cannot be iterated.",
                help=f"Use other_step.map({self.node}(…)), or @step(outputs=(…)) to unpack several outputs.",
            )
        return iter([Ref(self.node, name, self.graph) for name in declared])

    def __bool__(self) -> bool:
        raise GraphError(
            f"The output of step '{self.node}' is not known until the step has run, so a graph cannot branch on it.",
            help="Put the condition inside a step.",
        )

    def map(self, step: Step[..., Any], /, **fixed: Any) -> Ref:
        """Run `step` once per element of this output."""
        if self.graph is None:
            raise GraphError(
                f"The output of '{self.node}' does not belong to a graph.", help="Use Graph.add with Each(…)."
            )
        return self.graph.call_map(step, self, fixed)

    def _declared(self) -> tuple[str, ...]:
        if self.graph is None or self.output is not None:
            return ()
        node = self.graph.nodes[self.node]
        return () if node.mapped else node.step.outputs


@dataclass(frozen=True, slots=True)
class Node:
    """A step in a graph. Its inputs are references to other nodes, or values (which may hold references)."""

    name: str
    step: Step[..., Any]
    inputs: dict[str, Any]
    mapped: str | None = None
    """The input over whose elements it fans out."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the nodes that its inputs come from, each once, in order."""
        return tuple(dict.fromkeys(ref.node for value in self.inputs.values() for ref in find_refs(value)))

    @property
    def params(self) -> dict[str, Any]:
        """The inputs that are plain values. These can be set from outside."""
        return {name: value for name, value in self.inputs.items() if not any(True for _ in find_refs(value))}


class Graph:
    """Nodes by name, in the order in which they were added."""

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.nodes: dict[str, Node] = {}

    @classmethod
    def from_function(cls, function: Callable[..., object], /, *args: Any, **kwargs: Any) -> Graph:
        """Trace one call of a function that calls steps."""
        with trace(getattr(function, "__name__", "graph")) as graph:
            function(*args, **kwargs)
        return graph

    @classmethod
    def wire(
        cls,
        steps: Iterable[Step[..., Any]],
        *,
        given: Mapping[str, object] | None = None,
        name: str = "graph",
    ) -> Graph:
        """Wire steps by the names of their parameters.

        A parameter takes the first of these that exists: the entry of that name in `given` (a value, a step,
        `step.output`); the output of the step of that name; the named output of that name; its default. Steps that
        are not listed are found by name in the module of the step that needs them.

        Raises:
            GraphError: an input that nothing provides (with the nearest names), a cycle (with its path), or two
                steps of one name.
        """
        graph = cls(name)
        for one, inputs in Wiring(steps, dict(given or {})).ordered.values():
            graph.add(one, inputs=inputs)
        return graph

    def add(self, step: Step[..., Any], *, name: str | None = None, inputs: Mapping[str, object] | None = None) -> Ref:
        """Add one node. Inputs are values, `Ref`s, steps that are in the graph, `step.output`, or `Each(…)`.

        Raises:
            GraphError: the name is taken, an input is missing or is not a parameter of the step, a reference has
                no node, two inputs are `Each`, or a value contains itself.
        """
        name = name or step.name
        if name in self.nodes:
            raise GraphError(f"The graph has two steps called '{name}'.", help="Name one of them: @step(name='…').")
        accepted, takes_any = step.parameters, step.takes_any
        bound: dict[str, Any] = {}
        mapped = None
        for key, value in (inputs or {}).items():
            if key not in accepted and not takes_any:
                raise GraphError(f"Step '{name}' has no parameter '{key}'.", help=nearest_names(key, accepted))
            if isinstance(value, Each):
                if mapped is not None:
                    raise GraphError(f"Step '{name}' fans out over '{mapped}' and '{key}'.", help="Choose one of them.")
                mapped, value = key, value.values
            check_nesting(value, name, key)
            bound[key] = self._resolve(value, name)
        for key, default in accepted.items():
            if key not in bound:
                if default is _EMPTY:
                    raise GraphError(
                        f"Step '{name}' needs the input '{key}', which is missing.",
                        help=nearest_names(key, self.nodes),
                    )
                check_nesting(default, name, key)
                bound[key] = default
        order = {key: number for number, key in enumerate(accepted)}
        bound = dict(sorted(bound.items(), key=lambda item: order.get(item[0], len(order))))
        self.nodes[name] = Node(name, step, bound, mapped)
        return Ref(name, None, self)

    def call(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Ref:
        """Add a node for a call of a step. If the step is called again, its node gets a number: `prepare_2`."""
        try:
            bound = step.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise GraphError(f"Step '{step.name}' cannot be called with these arguments: {error}.") from error
        inputs: dict[str, Any] = {}
        for key, value in bound.arguments.items():
            kind = step.signature.parameters[key].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                inputs.update(value)
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                raise GraphError(
                    f"Step '{step.name}' takes *{key}, but inputs need names.", help="Make it one parameter: a list."
                )
            else:
                inputs[key] = value
        return self.add(step, name=self._free_name(step.name), inputs=inputs)

    def call_map(self, step: Step[..., Any], values: Any, fixed: Mapping[str, Any]) -> Ref:
        free = [key for key in step.parameters if key not in fixed]
        if not free:
            raise GraphError(f"Step '{step.name}' has no parameter left to map over.")
        return self.add(step, name=self._free_name(step.name), inputs={free[0]: Each(values), **fixed})

    def order(self, targets: Iterable[str] | None = None) -> list[str]:
        """Names of the nodes, each after the nodes that it needs. With targets, only those and the nodes they need.

        Raises:
            GraphError: an unknown target.
        """
        waiting = list(self.nodes) if targets is None else [self.get(name).name for name in targets]
        wanted: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting.extend(self.nodes[name].needs)
        # Nodes are added after those that they refer to, so they can run in the order in which they were added.
        return [name for name in self.nodes if name in wanted]

    def get(self, name: str) -> Node:
        """The node of that name.

        Raises:
            GraphError: the graph has no such node.
        """
        if name not in self.nodes:
            raise GraphError(f"The graph has no step '{name}'.", help=nearest_names(name, self.nodes))
        return self.nodes[name]

    def edges(self) -> list[tuple[str, str, str]]:
        """`(from node, to node, input)` for every reference."""
        return list(
            dict.fromkeys(
                (ref.node, node.name, key)
                for node in self.nodes.values()
                for key, value in node.inputs.items()
                for ref in find_refs(value)
            )
        )

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """The graph as JSON, for drawing."""
        nodes = [
            {
                "name": node.name,
                "description": (inspect.getdoc(node.step.function) or "").partition("\n")[0],
                "params": {key: repr(value) for key, value in node.params.items()},
                "outputs": list(node.step.outputs),
                "mapped": node.mapped,
            }
            for node in self.nodes.values()
        ]
        return {"nodes": nodes, "edges": [{"from": a, "to": b, "input": key} for a, b, key in self.edges()]}

    def _free_name(self, name: str) -> str:
        number, free = 2, name
        while free in self.nodes:
            free, number = f"{name}_{number}", number + 1
        return free

    def _resolve(self, value: Any, name: str) -> Any:
        """Replace steps and outputs by references, and check that each reference has a node."""
        if isinstance(value, Step):
            value = Ref(value.name, None, self)
        elif isinstance(value, Output):
            value = Ref(value.step.name, value.name, self)
        elif type(value) in (list, tuple):
            return type(value)(self._resolve(item, name) for item in value)
        elif type(value) is dict:
            return {key: self._resolve(item, name) for key, item in value.items()}
        if isinstance(value, Ref):
            if value.node not in self.nodes:
                raise GraphError(
                    f"Step '{name}' takes the output of '{value.node}', which is not in the graph.",
                    help=nearest_names(value.node, self.nodes),
                )
            if value.output is not None:
                return Ref(value.node, None, self)[value.output]
        return value

    def __repr__(self) -> str:
        return f"<graph {self.name}: {', '.join(self.nodes)}>"


def check_nesting(value: object, step: str, parameter: str) -> None:
    """Raise GraphError if a value of a parameter contains itself, or is nested too deeply to be searched."""
    problem = _nesting_problem(value, ())
    if problem is not None:
        raise GraphError(
            f"The parameter '{parameter}' of step '{step}' has a value that {problem}.",
            help="Build the value inside the step instead.",
        )


def _nesting_problem(value: object, outer: tuple[object, ...]) -> str | None:
    if type(value) in (list, tuple):
        items: Iterable[object] = value  # type: ignore[assignment]
    elif type(value) is dict:
        items = value.values()
    else:
        return None
    if any(one is value for one in outer):
        return "contains itself"
    if len(outer) == _MOST_LEVELS:
        return f"is nested more than {_MOST_LEVELS} levels deep"
    inner = (*outer, value)
    for item in items:
        if (problem := _nesting_problem(item, inner)) is not None:
            return problem
    return None


def find_refs(value: Any) -> Iterator[Ref]:
    """Every reference in an input; lists, tuples and dicts may hold some."""
    if isinstance(value, Ref):
        yield value
    elif type(value) in (list, tuple):
        for item in value:
            yield from find_refs(item)
    elif type(value) is dict:
        for item in value.values():
            yield from find_refs(item)


def replace_refs(value: Any, replace: Callable[[Ref], Any]) -> Any:
    """The same input with every reference replaced."""
    if isinstance(value, Ref):
        return replace(value)
    if type(value) in (list, tuple):
        return type(value)(replace_refs(item, replace) for item in value)
    if type(value) is dict:
        return {key: replace_refs(item, replace) for key, item in value.items()}
    return value


@contextmanager
def trace(name: str = "graph") -> Iterator[Graph]:
    """Inside the block, calling a step adds it to the graph instead of running it."""
    graph = Graph(name)
    token = tracing.set(graph)
    try:
        yield graph
    finally:
        tracing.reset(token)
