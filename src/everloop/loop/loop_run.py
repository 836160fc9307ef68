"""One turn of a loop: data → train → judge → register → release, doing only what is not done yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everloop.errors import GraphError
from everloop.loop.stages import graph_of
from everloop.pipeline import plan, run_graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.loop.column_report import ColumnReport
    from everloop.loop.loop_definition import Loop
    from everloop.pipeline import Executor, GraphRun, Listener, Planned
    from everloop.records import GateResult, ModelVersion, Release, Run, StepRun
    from everloop.stores import Store


@dataclass(frozen=True, slots=True)
class LoopRun:
    """What a turn did. `version`, `gates`, `release` and `columns` are of the candidate, new or found again."""

    run: Run
    steps: list[StepRun]
    version: ModelVersion | None
    gates: list[GateResult]
    release: Release | None
    columns: ColumnReport | None = None
    """What became of each column of the table."""
    broken: tuple[dict[str, Any], ...] = ()
    """What this turn found in its table that breaks or bends the contract: the data of those events."""

    @property
    def metric(self) -> str | None:
        """The metric that decided the candidate's evaluation."""
        found = self.version.evaluation.get("metric") if self.version is not None else None
        return found if isinstance(found, str) else None

    @property
    def ran(self) -> int:
        """How many steps really ran."""
        return sum(step.status == "ran" for step in self.steps)


def run_loop(
    loop: Loop,
    store: Store,
    *,
    trigger: str = "manual",
    target: str | None = None,
    params: Mapping[str, Any] | None = None,
    executor: str | Executor = "inline",
    force: Iterable[str] | bool = (),
    listener: Listener | None = None,
) -> LoopRun:
    """Take one turn, or the part of it that leads to the step `target`.

    Two turns at once are safe: the second waits for the first's steps and finds them done. A turn that was killed
    is gone on with by the next.

    Raises:
        EverloopError: a step failed; what was finished before is kept.
    """
    from everloop.records import Run
    from everloop.stores.verify import mark_lost
    from everloop.tracking import start_run

    mark_lost(store)
    before = store.records.last_event()
    graph = graph_of(loop)
    if target is not None:
        graph.get(target)
    with start_run(loop.name, store=store, params=dict(params or {}), loop=loop.name, trigger=trigger) as run:
        done = run_graph(
            graph,
            store,
            run=run,
            targets=None if target is None else [target],
            executor=executor,
            params=params,
            force=force,
            listener=listener,
        )
    return _told(store, store.records.get(Run, run.id), done, before)


def explain_run(
    loop: Loop,
    store: Store,
    *,
    target: str | None = None,
    params: Mapping[str, Any] | None = None,
    force: Iterable[str] | bool = (),
) -> list[Planned]:
    """What a turn would do now, and why, without doing it."""
    return plan(graph_of(loop), store, targets=None if target is None else [target], params=params, force=force)


def _told(store: Store, run: Run, done: GraphRun, before: int) -> LoopRun:
    from everloop.loop.column_report import report_columns
    from everloop.records import GateResult, Release
    from everloop.registry import get_version

    made = _value(done, "register")
    version = get_version(store, made) if made else None
    gates = [store.records.get(GateResult, gate) for gate in _value(done, "judge") or []]
    begun = _value(done, "release")
    release = store.records.get(Release, begun["release"]) if begun else None
    rivals = [release.previous if release is not None else None, *(gate.champion for gate in gates)]
    previous = next((rival for rival in rivals if rival is not None), None)
    events = store.records.events_since(before, kinds=("contract",))
    return LoopRun(
        run=run,
        steps=done.steps,
        version=version,
        gates=gates,
        release=release,
        columns=report_columns(store, version, previous) if version is not None else None,
        broken=tuple(event.data for event in events if event.data.get("run") == run.id),
    )


def _value(done: GraphRun, step: str) -> Any:
    try:
        return done.value(step)
    except GraphError:
        # The turn was asked for a part that does not contain it.
        return None
