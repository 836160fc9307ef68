"""Wiring steps by the names of their parameters."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError
from everloop.pipeline.steps import Output, Step
from everloop.pipeline.unknown_names import nearest_names

if TYPE_CHECKING:
    from collections.abc import Iterable

_EMPTY = inspect.Parameter.empty


class Wiring:
    """Orders steps after the steps that they need, depth first.

    `ordered` maps the name of each step to the step and its inputs, in an order in which the steps can run.
    """

    def __init__(self, steps: Iterable[Step[..., Any]], given: dict[str, object]) -> None:
        self.ordered: dict[str, tuple[Step[..., Any], dict[str, Any]]] = {}
        self.given = given
        self.steps: dict[str, Step[..., Any]] = {}
        self.path: list[str] = []
        """The steps that are being visited, to detect a cycle."""
        for value in given.values():
            if isinstance(value, Step):
                self._register(value)
            elif isinstance(value, Output):
                self._register(value.step)
        for one in steps:
            self._register(one)
        for one in list(self.steps.values()):
            self._visit(one)

    def _register(self, step: Step[..., Any]) -> None:
        if self.steps.setdefault(step.name, step) is not step:
            raise GraphError(
                f"The graph has two steps called '{step.name}'.", help="Name one of them: @step(name='…')."
            )

    def _visit(self, step: Step[..., Any]) -> None:
        if step.name in self.path:
            cycle = [*self.path[self.path.index(step.name) :], step.name]
            raise GraphError(
                f"The steps depend on each other in a cycle: {' → '.join(cycle)}.",
                help="Rename one of these parameters.",
            )
        if step.name in self.ordered:
            return
        self.path.append(step.name)
        inputs: dict[str, Any] = {}
        for key, default in step.parameters.items():
            source = self._source(step, key, default)
            if source is not _EMPTY:
                inputs[key] = source
        self.ordered[step.name] = step, inputs
        self.path.pop()

    def _source(self, step: Step[..., Any], key: str, default: Any) -> Any:
        if key in self.given and not (isinstance(self.given[key], Step) and self.given[key] is step):
            source = self.given[key]
            for used in [source] if isinstance(source, Step) else [source.step] if isinstance(source, Output) else []:
                self._visit(used)
            return source
        provider = self.steps.get(key) or self._find_in_module(step, key)
        if provider is not None:
            self._visit(provider)
            return provider
        owners = [one for one in self.steps.values() if key in one.outputs]
        if len(owners) > 1:
            raise GraphError(
                f"Input '{key}' of step '{step.name}' could come from: {', '.join(one.name for one in owners)}.",
                help=f"Choose one: Graph.wire(…, given={{'{key}': {owners[0].name}.{key}}}).",
            )
        if owners:
            self._visit(owners[0])
            return Output(owners[0], key)
        if default is _EMPTY:
            steps = {**_steps_in_module(step), **self.steps}
            known = [*steps, *(name for one in self.steps.values() for name in one.outputs), *self.given]
            raise GraphError(
                f"Nothing provides the input '{key}' of step '{step.name}'.",
                help=nearest_names(key, known, noun="step"),
            )
        return default

    def _find_in_module(self, step: Step[..., Any], key: str) -> Step[..., Any] | None:
        """Another step of that name in the module of this one."""
        found = _steps_in_module(step).get(key)
        if found is not None and found is not step:
            self._register(found)
        return found if found is not step else None


def _steps_in_module(step: Step[..., Any]) -> dict[str, Step[..., Any]]:
    """The steps that have their own name in the module of this one."""
    names = getattr(inspect.unwrap(step.function), "__globals__", {})
    return {key: value for key, value in names.items() if isinstance(value, Step) and value.name == key}
