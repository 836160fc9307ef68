"""Tasks of a graph's run: single steps, and steps that fan out into one task per element."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from everloop.pipeline import fingerprint as fp
from everloop.pipeline.resources import parse_amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import ExitStack

    from everloop.pipeline.artifacts import Stored
    from everloop.pipeline.code.step_code import Code
    from everloop.pipeline.graph import Node
    from everloop.records import StepRun


@dataclass
class ScheduledTask:
    """One step, or one element of a step that fans out."""

    node: Node
    name: str
    inputs: dict[str, Any]
    code: Code
    parts: dict[str, str]
    index: int | None = None
    attempt: int = 1
    reason: str = ""
    not_before: float = 0.0
    lock: ExitStack | None = None
    lock_wait_s: float = 0.01

    @cached_property
    def fingerprint(self) -> str:
        return fp.fingerprint(self.parts)

    def release(self) -> None:
        """Release the lock of the fingerprint."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


@dataclass
class FanOut:
    """A step that fans out, while its elements run. `elements` and `steps` fill up as they end."""

    node: Node
    inputs: dict[str, Any]
    code: Code
    parts: dict[str, str]
    reason: str
    elements: list[Stored | None]
    steps: list[StepRun] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        return fp.fingerprint(self.parts)


def count_readers(nodes: Mapping[str, Node], order: Iterable[str]) -> dict[str, int]:
    """Name of each node to the number of nodes that read its output."""
    counts: dict[str, int] = {}
    for name in order:
        for need in nodes[name].needs:
            counts[need] = counts.get(need, 0) + 1
    return counts


def needs_of(node: Node) -> dict[str, float]:
    """The resources that one run of a node needs; one CPU if it declares none."""
    return {"cpu": 1.0, **{name: parse_amount(amount) for name, amount in node.step.resources.items()}}
