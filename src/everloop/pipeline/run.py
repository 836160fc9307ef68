"""Running a graph."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from everloop.pipeline.binding import set_params, targets_of
from everloop.pipeline.executors.executor_choice import load_executor
from everloop.pipeline.planning import forced_steps
from everloop.pipeline.run_listener import Listener
from everloop.pipeline.scheduler import GraphScheduler

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from everloop.pipeline.executors import Executor
    from everloop.pipeline.graph import Graph
    from everloop.pipeline.result import GraphRun
    from everloop.stores import Store
    from everloop.tracking import ActiveRun


def run_graph(
    graph: Graph,
    store: Store,
    *,
    run: ActiveRun | None = None,
    targets: Iterable[str] | None = None,
    executor: str | Executor = "inline",
    force: Iterable[str] | bool = (),
    params: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    check: bool = True,
) -> GraphRun:
    """Run a graph, or the part of it that `targets` need.

    Args:
        run: the run that the steps belong to. By default, a new run is started with the graph's name.
        executor: `inline`, `pool`, `ray`, `ray://HOST:PORT`, or an executor.
        force: names of steps that run even if the cache has their result, or True for all.
        params: parameters to set: `name` in every step that has it, `step.name` in one.
        check: raise the error that made a step fail. With False it is in the result's `error`, as in `subprocess.run`.

    Raises:
        GraphError: an unknown target or forced step, or a fan-out over something other than a list.
        UsageError: an unknown parameter, or resources that the executor does not have.
        StepError: a step failed; its own exception is the cause. Errors of everloop are raised unchanged.
        KeyboardInterrupt: the run was interrupted; the records of its steps have the status `interrupted`.
    """
    order = targets_of(graph, targets)
    nodes = set_params(graph, params or {})
    forced = forced_steps(graph, force)
    with ExitStack() as stack:
        if isinstance(executor, str):
            chosen: Executor = load_executor(executor)
            stack.callback(chosen.close)
        else:
            chosen = executor
        scheduler: GraphScheduler | None = None
        try:
            with ExitStack() as tracked:
                if run is None:
                    from everloop.tracking import start_run

                    run = tracked.enter_context(start_run(graph.name, store=store, params=dict(params or {})))
                scheduler = GraphScheduler(store, run, nodes, order, chosen, forced, listener or Listener())
                scheduler.run_all()
                if scheduler.result.error is not None:
                    raise scheduler.result.error
        except Exception as error:
            if check or scheduler is None or error is not scheduler.result.error:
                raise
    return scheduler.result
