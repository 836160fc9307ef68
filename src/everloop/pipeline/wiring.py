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
    """Places steps behind what they need, depth first, and remembers the path to tell a cycle.

    `placed` has each step by its name, with its inputs, in an order in which they can run.
    """

    def __init__(self, steps: Iterable[Step[..., Any]], given: dict[str, object]) -> None:
        self.placed: dict[str, tuple[Step[..., Any], dict[str, Any]]] = {}
        self.given = given
        self.steps: dict[str, Step[..., Any]] = {}
        self.path: list[str] = []
        for value in given.values():
            if isinstance(value, Step):
                self.accept(value)
            elif isinstance(value, Output):
                self.accept(value.step)
        for one in steps:
            self.accept(one)
        for one in list(self.steps.values()):
            self.place(one)

    def accept(self, step: Step[..., Any]) -> None:
        known = self.steps.setdefault(step.name, step)
        if known is not step:
            raise GraphError(
                f"The graph has two steps called '{step.name}'.", help="Name one of them: @step(name='…')."
            )

    def place(self, step: Step[..., Any]) -> None:
        if step.name in self.path:
            cycle = [*self.path[self.path.index(step.name) :], step.name]
            raise GraphError(
                f"The steps need each other in a circle: {' → '.join(cycle)}.", help="Rename one of these parameters."
            )
        if step.name in self.placed:
            return
        self.path.append(step.name)
        inputs: dict[str, Any] = {}
        for key, default in step.parameters.items():
            source = self._source(step, key, default)
            if source is not _EMPTY:
                inputs[key] = source
        self.placed[step.name] = step, inputs
        self.path.pop()

    def _source(self, step: Step[..., Any], key: str, default: Any) -> Any:
        if key in self.given and not (isinstance(self.given[key], Step) and self.given[key] is step):
            source = self.given[key]
            for used in [source] if isinstance(source, Step) else [source.step] if isinstance(source, Output) else []:
                self.place(used)
            return source
        provider = self.steps.get(key) or self._near(step, key)
        if provider is not None:
            self.place(provider)
            return provider
        owners = [one for one in self.steps.values() if key in one.outputs]
        if len(owners) > 1:
            raise GraphError(
                f"Input '{key}' of step '{step.name}' could come from: {', '.join(one.name for one in owners)}.",
                help=f"Say which: Graph.wire(…, given={{'{key}': {owners[0].name}.{key}}}).",
            )
        if owners:
            self.place(owners[0])
            return Output(owners[0], key)
        if default is _EMPTY:
            steps = {**_steps_beside(step), **self.steps}
            known = [*steps, *(name for one in self.steps.values() for name in one.outputs), *self.given]
            raise GraphError(
                f"Nothing provides the input '{key}' of step '{step.name}'.", help=nearest_names(key, known, one="step")
            )
        return default

    def _near(self, step: Step[..., Any], key: str) -> Step[..., Any] | None:
        """A step of that name beside the one that asks for it."""
        found = _steps_beside(step).get(key)
        if found is not None and found is not step:
            self.accept(found)
        return found if found is not step else None


def _steps_beside(step: Step[..., Any]) -> dict[str, Step[..., Any]]:
    """The steps that stand under their own name in the module of this one."""
    names = getattr(inspect.unwrap(step.function), "__globals__", {})
    return {key: value for key, value in names.items() if isinstance(value, Step) and value.name == key}
