"""The result of a graph's run: its steps, its error, and the values that it made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError
from everloop.pipeline.artifacts import Stored, load_value
from everloop.pipeline.steps import RESULT
from everloop.records import Artifact, StepRun

if TYPE_CHECKING:
    from everloop.stores import Store


@dataclass
class GraphRun:
    """The result of a graph's run."""

    run: str
    """Id of the run."""
    store: Store
    steps: list[StepRun] = field(default_factory=list)
    """A record per step, in the order in which they ended. The elements of a step that fans out come before it."""
    error: BaseException | None = None
    _results: dict[str, dict[str, Stored]] = field(default_factory=dict, repr=False)
    _artifacts: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> StepRun | None:
        """The step that failed, if one did."""
        return next((step for step in self.steps if step.status == "failed"), None)

    def step(self, name: str) -> StepRun:
        """The record of one step.

        Raises:
            GraphError: the run has no step of that name.
        """
        for step in reversed(self.steps):
            if step.name == name:
                return step
        raise GraphError(
            f"The run has no step '{name}'.", help=f"It has: {', '.join(step.name for step in self.steps)}"
        )

    def value(self, name: str) -> Any:
        """The value that a step returned: `"prepare"`, or one of several outputs, `"split.train"`.

        Several outputs come as a dict.

        Raises:
            GraphError: the run has no such step or output, or the step has no result.
        """
        step, outputs = self._outputs(name)
        if step != name or set(outputs) == {RESULT}:
            return load_value(next(iter(outputs.values())), self.store.objects)
        return {output: load_value(stored, self.store.objects) for output, stored in outputs.items()}

    def artifact(self, name: str) -> Artifact:
        """The artifact that a step returned. If it has several outputs, name one: `"split.train"`.

        Raises:
            GraphError: as for `value`, or the step has several outputs and none is named.
        """
        step, outputs = self._outputs(name)
        if len(outputs) > 1:
            raise GraphError(f"Step '{step}' has several outputs.", help=f"Name one: {step}.{next(iter(outputs))}")
        return self.store.records.get(Artifact, self._artifacts[step][next(iter(outputs))])

    def _outputs(self, name: str) -> tuple[str, dict[str, Stored]]:
        step, _, output = name.partition(".")
        if step not in self._results:
            record = self.step(step)
            raise GraphError(f"Step '{step}' has no result: it was {record.status} ({record.reason}).")
        outputs = self._results[step]
        if output and output not in outputs:
            raise GraphError(f"Step '{step}' has no output '{output}'.", help=f"It has: {', '.join(outputs)}")
        return step, {output: outputs[output]} if output else outputs
