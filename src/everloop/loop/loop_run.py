"""One run of a loop: data → train → evaluate → register → judge → release. Steps that are up to date are skipped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from everloop.errors import ConflictError, GraphError
from everloop.loop.stages import graph_of
from everloop.pipeline import plan, run_graph
from everloop.pipeline.executors.executor_choice import configured_executor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.loop.column_report import ColumnReport
    from everloop.loop.loop_definition import Loop
    from everloop.loop.triggers.trigger_protocol import Due
    from everloop.pipeline import Executor, GraphRun, Listener, Planned
    from everloop.records import GateResult, ModelVersion, Release, Run, StepRun
    from everloop.stores import Store
    from everloop.tracking import ActiveRun


@dataclass(frozen=True, slots=True)
class LoopRun:
    """The result of a run. `version`, `gates`, `release` and `columns` describe the candidate, new or cached."""

    run: Run
    steps: list[StepRun]
    version: ModelVersion | None
    gates: list[GateResult]
    release: Release | None
    columns: ColumnReport | None = None
    """How each column of the table was used."""
    broken: tuple[dict[str, Any], ...] = ()
    """Contract violations that this run found in its table, errors and warnings: the data of their events."""
    notes: tuple[str, ...] = ()
    """What training noticed, such as rows that it left out."""

    @property
    def metric(self) -> str | None:
        """The metric that decided the candidate's evaluation."""
        metric = self.version.evaluation.get("metric") if self.version is not None else None
        return metric if isinstance(metric, str) else None

    @property
    def ran(self) -> int:
        """How many steps ran instead of being taken from the cache."""
        return sum(step.status == "ran" for step in self.steps)


def run_loop(
    loop: Loop,
    store: Store,
    *,
    trigger: str | Due = "manual",
    target: str | None = None,
    params: Mapping[str, Any] | None = None,
    executor: str | Executor | None = None,
    force: Iterable[str] | bool = (),
    listener: Listener | None = None,
    tags: Mapping[str, str] | None = None,
) -> LoopRun:
    """Run a loop once, or only the steps that lead to `target`.

    Two runs at the same time are safe: the second waits for the steps of the first and finds them done. A run that was
    killed is resumed by the next one.

    Args:
        trigger: what started the run, as a text or as `find_due` returned it; recorded with it.
        target: name of the last step to run. Default: all steps.
        params: values for parameters of steps, by `name` or `step.name`.
        executor: where steps run: `local`, `pool`, `ray`, `ray://HOST:PORT`, or an `Executor`. Default: what the
            nearest everloop.toml sets as `executor`, else `local`.
        force: names of steps to run although they are cached; True for all.
        listener: receives the progress of the steps.
        tags: tags of the run.

    Raises:
        ConflictError: `trigger` is a `Due`, and another process has started a run since it was found.
        EverloopError: a step failed. The results of the steps before it are kept.
    """
    from everloop.records import Run
    from everloop.stores.verify import mark_lost

    mark_lost(store)
    before = store.records.last_event()
    graph = graph_of(loop)
    if target is not None:
        graph.get(target)
    with _start(loop, store, trigger, params or {}, tags) as run:
        result = run_graph(
            graph,
            store,
            run=run,
            targets=None if target is None else [target],
            executor=executor if executor is not None else configured_executor(),
            params=params,
            force=force,
            listener=listener,
        )
    return _loop_run(store, store.records.get(Run, run.id), result, before)


def _start(
    loop: Loop, store: Store, trigger: str | Due, params: Mapping[str, Any], tags: Mapping[str, str] | None
) -> ActiveRun:
    """Start the run of a loop and record what caused it."""
    from everloop.loop.triggers.trigger_contexts import newest_runs, set_marks
    from everloop.loop.triggers.trigger_protocol import ANY_RUN, Due
    from everloop.tracking import start_run

    cause = trigger.to_dict() if isinstance(trigger, Due) else {"trigger": trigger, "reason": "", "evidence": {}}
    marks = set_marks(loop, store, partial(explain_run, loop, store))
    # In a transaction, no other process can start a run between this check and the start.
    with store.records.transaction():
        newest = newest_runs(store, loop.name)
        allowed = (ANY_RUN, newest[0].id if newest else None)
        if isinstance(trigger, Due) and trigger.after not in allowed:
            raise ConflictError(
                f"Another process has started a run of '{loop.name}', so this one was not started for: {trigger}",
                help="Nothing needs to be done. The triggers are checked again after that run.",
            )
        return start_run(
            loop.name,
            store=store,
            params=dict(params),
            tags=tags,
            loop=loop.name,
            trigger=str(trigger),
            cause={**cause, "marks": marks} if marks else cause,
        )


def explain_run(
    loop: Loop,
    store: Store,
    *,
    target: str | None = None,
    params: Mapping[str, Any] | None = None,
    force: Iterable[str] | bool = (),
) -> list[Planned]:
    """Return the steps that a run would execute now, and why, without running anything."""
    return plan(graph_of(loop), store, targets=None if target is None else [target], params=params, force=force)


def _loop_run(store: Store, run: Run, result: GraphRun, before: int) -> LoopRun:
    from everloop.loop.column_report import report_columns
    from everloop.records import GateResult, Release
    from everloop.registry import get_version, training_notes

    registered = _value(result, "register")
    version = get_version(store, registered) if registered else None
    gates = [store.records.get(GateResult, gate) for gate in _value(result, "judge") or []]
    released = _value(result, "release")
    release = store.records.get(Release, released["release"]) if released else None
    champions = [release.previous if release is not None else None, *(gate.champion for gate in gates)]
    previous = next((champion for champion in champions if champion is not None), None)
    events = store.records.events_since(before, kinds=("contract",))
    return LoopRun(
        run=run,
        steps=result.steps,
        version=version,
        gates=gates,
        release=release,
        columns=report_columns(store, version, previous) if version is not None else None,
        broken=tuple(event.data for event in events if event.data.get("run") == run.id),
        notes=training_notes(store, version) if version is not None else (),
    )


def _value(result: GraphRun, step: str) -> Any:
    try:
        return result.value(step)
    except GraphError:
        # `target` left this step out of the run.
        return None
