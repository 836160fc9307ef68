"""The plan of a run: which steps would run and why, without running them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from everloop.pipeline import fingerprint as fp
from everloop.pipeline.binding import bind_inputs, set_params, targets_of
from everloop.pipeline.cache import Cache, CacheHit
from everloop.pipeline.code.step_code import code_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.pipeline.artifacts import Stored
    from everloop.pipeline.graph import Graph
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class Planned:
    """Whether one step would run. The inputs of a step that follows a step that would run are not known yet, so it
    may still come from the cache if they turn out to be the same as before."""

    name: str
    status: Literal["would run", "cached"]
    reason: str


def plan(
    graph: Graph,
    store: Store,
    *,
    targets: Iterable[str] | None = None,
    force: Iterable[str] | bool = (),
    params: Mapping[str, Any] | None = None,
) -> list[Planned]:
    """Plan each step, in the order of running.

    Raises:
        GraphError: an unknown target or forced step.
        UsageError: an unknown parameter.
    """
    order = targets_of(graph, targets)
    nodes = set_params(graph, params or {})
    forced = forced_steps(graph, force)
    cache = Cache(store)
    cache.prefetch(order)
    results: dict[str, dict[str, Stored]] = {}
    planned: list[Planned] = []
    for name in order:
        node = nodes[name]
        code = code_of(node.step.function)
        last = cache.last(name)
        waiting = [need for need in node.needs if need not in results]
        if waiting:
            # The inputs that come from steps that would run are left out of the comparison.
            parts = fp.parts_of(node, node.params, store.objects, code=code)
            before = last.parts if last else None
            if before is not None:
                before = {key: value for key, value in before.items() if key in parts or not key.startswith("input:")}
            own_reason = fp.reason(parts, before, code.home)
            follows = f"follows {', '.join(waiting)}"
            reason = follows if own_reason == fp.NOTHING_CHANGED else f"{own_reason}; {follows}"
            planned.append(Planned(name, "would run", reason if name not in forced else fp.FORCED))
            continue
        parts = fp.parts_of(node, bind_inputs(node, results), store.objects, code=code)
        if name in forced:
            planned.append(Planned(name, "would run", fp.FORCED))
            continue
        if not node.step.cache:
            planned.append(Planned(name, "would run", fp.NOT_CACHED))
            continue
        undigestible = fp.undigestible(parts)
        if undigestible is not None:
            planned.append(Planned(name, "would run", undigestible))
            continue
        found = cache.find(fp.fingerprint(parts), again=True)
        if isinstance(found, CacheHit):
            results[name] = found.outputs
            planned.append(Planned(name, "cached", fp.cached(found.step.observed)))
            continue
        reason = found.reason or fp.reason(parts, last.parts if last else None, code.home)
        planned.append(Planned(name, "would run", reason))
    return planned


def forced_steps(graph: Graph, force: Iterable[str] | bool) -> frozenset[str]:
    """The names of the steps that run even if the cache has their result."""
    if isinstance(force, bool):
        return frozenset(graph.nodes) if force else frozenset()
    return frozenset(graph.get(name).name for name in ([force] if isinstance(force, str) else force))
