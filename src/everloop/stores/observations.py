"""Recording which outside state a step has read.

A source that reads a file or runs a query calls `observe`. The code that runs the step collects the observations.
Neither depends on the other. Outside a collector, observations are discarded.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from everloop.records import Json
    from everloop.stores.home import Store

_checked: ContextVar[Store | None] = ContextVar("everloop_checked_store", default=None)
_collector: ContextVar[list[dict[str, Json]] | None] = ContextVar("everloop_observations", default=None)


def observe(kind: str, spec: dict[str, Json], state: str) -> dict[str, Json]:
    """Record that outside state was read, and return the observation. The caller may add `notes` to it.

    Args:
        kind: name of the `observation` plugin whose function checks the state again.
        spec: what was read; the argument of that function.
        state: the state that was found, as a short text that changes when the outside state changes.
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
    """Collect the observations made inside the block, each distinct one once, in order.

    Collectors nest: observations go to the innermost one. A thread started inside the block does not belong to it,
    unless the thread runs in a copy of the context.
    """
    seen: list[dict[str, Json]] = []
    token = _collector.set(seen)
    try:
        yield seen
    finally:
        _collector.reset(token)


@contextmanager
def checked_in(store: Store) -> Iterator[None]:
    """Look up outside state that is part of a store, such as dataset versions, in this store inside the block.

    A plan may be made for another store than that of the current folder, such as a fork.
    """
    token = _checked.set(store)
    try:
        yield
    finally:
        _checked.reset(token)


def checked_store() -> Store | None:
    """The store of the enclosing `checked_in`; None outside of one."""
    return _checked.get()
