"""Run a changed loop in a fork of the store, up to its gates, so that the check of a change never changes the store."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import polars as pl

    from everloop.loop import Loop
    from everloop.loop.gates.gate_protocol import GateContext
    from everloop.pipeline import Listener
    from everloop.records import GateResult, ModelVersion, StepRun
    from everloop.stores import Store

LAST_STEP = "judge"
"""What follows is the release, which a check must not start."""


@dataclass(frozen=True)
class CandidateRun:
    """A candidate that the changed loop made in a fork.

    Attributes:
        store: the fork. It is gone when the check ends.
        version: the candidate. Its number is that of the fork and means nothing outside of it.
        gates: results of its gates.
        context: the candidate with its held-out rows and predictions.
        champion: the version that holds the alias `champion`, or None.
        violations: the data of the events about rows that break the contract.
    """

    store: Store
    steps: Sequence[StepRun]
    version: ModelVersion
    gates: Sequence[GateResult]
    context: GateContext
    champion: ModelVersion | None
    violations: Sequence[dict[str, Any]]


@contextmanager
def forked_store(folder: Path, home: Path | None, project: str | None = None) -> Iterator[tuple[Store, bool]]:
    """Open a fork of the project's store, or an empty one if the project has no store yet.

    Neither the store nor its folder is written to.

    Yields:
        The fork, and whether there is a store.
    """
    from everloop.loop.project_folder import enter_folder
    from everloop.stores import open_store
    from everloop.stores.clock import SystemClock
    from everloop.stores.forks.scratch_store import scratch_store
    from everloop.stores.home import find_store_urls

    home = enter_folder(folder, home)
    try:
        origin = open_store(home, create=False)
    except NotFoundError:
        _, configured = find_store_urls(home)
        fork = scratch_store(project or configured or "default", SystemClock())
        try:
            yield fork, False
        finally:
            fork.close()
        return
    with origin:
        fork = origin.fork(origin.now(), clock=SystemClock())
        try:
            yield fork, True
        finally:
            fork.close()


def run_candidate(
    loop: Loop,
    store: Store,
    folder: Path,
    *,
    sample: int | None = None,
    executor: str = "inline",
    listener: Listener | None = None,
) -> CandidateRun:
    """Run a loop up to its gates.

    Args:
        folder: the project's folder.
        store: a fork, from `forked_store`.
        sample: number of rows to take. None: all.
        executor: where steps run.
        listener: receives the progress of the steps.

    Raises:
        EverloopError: a step failed.
    """
    from everloop.ci.sampling import sampled_graph
    from everloop.loop.comparison.champions import stored_part
    from everloop.loop.gates.gate_checks import context_for
    from everloop.loop.stages import graph_of
    from everloop.pipeline import run_graph
    from everloop.records import GateResult
    from everloop.registry import find_alias, get_version
    from everloop.tracking import start_run

    before = store.records.last_event()
    graph = graph_of(loop)
    if sample is not None:
        graph = sampled_graph(graph, sample, loop.data.key)
    with _contracts_kept(folder), start_run(loop.name, store=store, loop=loop.name, trigger="ci") as run:
        result = run_graph(graph, store, run=run, targets=[LAST_STEP], executor=executor, listener=listener)
    version = get_version(store, result.value("register"))
    parts: dict[str, pl.DataFrame | None] = {name: _part(result, name) for name in ("train", "test")}
    test = parts["test"] if parts["test"] is not None else stored_part(store, version, "test")
    if test is None:
        raise NotFoundError(f"The held-out rows of {version.key} have been removed from the store.", help="Add --full.")
    context = context_for(
        store,
        version,
        test,
        target=loop.data.target,
        key=loop.data.key,
        time=loop.data.time,
        metric=loop.training_metric,
        training_rows=parts["train"],
    )
    held = find_alias(store, loop.model, "champion")
    return CandidateRun(
        store=store,
        steps=result.steps,
        version=version,
        gates=[store.records.get(GateResult, one) for one in result.value(LAST_STEP) or []],
        context=context,
        champion=get_version(store, held.version) if held is not None else None,
        violations=[event.data for event in store.records.events_since(before, kinds=("contract",))],
    )


@contextmanager
def _contracts_kept(folder: Path) -> Iterator[None]:
    """Remove contracts that a run inferred and wrote into the project: a check must not change what it checks."""
    contracts = folder / "contracts"
    existed, before = contracts.is_dir(), set(contracts.glob("*.toml"))
    try:
        yield
    finally:
        for path in set(contracts.glob("*.toml")) - before:
            path.unlink(missing_ok=True)
        if not existed and contracts.is_dir() and not any(contracts.iterdir()):
            contracts.rmdir()


def _part(result: Any, name: str) -> pl.DataFrame | None:
    try:
        part: pl.DataFrame = result.value(f"split.{name}")
    except GraphError:
        return None
    return part
