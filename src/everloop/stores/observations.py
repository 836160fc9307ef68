"""How a step tells what outside state it has read.

A source that reads a file or a query calls `observe`; whoever runs the step collects. Neither knows the other,
and outside a collector `observe` does nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Json

_collector: ContextVar[list[dict[str, Json]] | None] = ContextVar("everloop_observations", default=None)


def observe(kind: str, spec: dict[str, Json], state: str) -> dict[str, Json]:
    """Say that outside state was read; returns what is remembered of it, to which `notes` may be added.

    Args:
        kind: name in the plugin table under `observation`, whose function looks again.
        spec: what was looked at; what that function is called with.
        state: what was seen, as a short text that changes when the outside does.
    """
    observation: dict[str, Json] = {"kind": kind, "spec": spec, "state": state}
    seen = _collector.get()
    if seen is None:
        return observation
    for known in seen:
        if {name: known[name] for name in observation} == observation:
            return known
    seen.append(observation)
    return observation


@contextmanager
def collect_observations() -> Iterator[list[dict[str, Json]]]:
    """Collect what is observed inside the block, each distinct observation once, in order.

    Collectors nest: the inner one takes what is observed within it. A thread started inside the block is outside
    of it, unless it runs in a copy of the context.
    """
    seen: list[dict[str, Json]] = []
    token = _collector.set(seen)
    try:
        yield seen
    finally:
        _collector.reset(token)
