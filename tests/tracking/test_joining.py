"""Steps in worker processes know the run that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from everloop.pipeline import Graph, run_graph, step
from everloop.records import Run
from everloop.tracking import current_run, read_metrics, start_run

if TYPE_CHECKING:
    from everloop.stores import Store


@step(cache=False)
def trains() -> str:
    run = current_run()
    assert run is not None
    for epoch in range(3):
        run.log(loss=epoch, step=epoch)
    run.log_text("note", "from a worker")
    run.set_tag("worker", "yes")
    with start_run("inner", store=run.store) as inner:
        inner.log(loss=9.0)
    return run.id


@pytest.mark.slow
def test_a_step_in_the_pool_logs_to_its_run(store: Store) -> None:
    with start_run("turn", store=store) as run:
        done = run_graph(Graph.wire([trains]), store, run=run, executor="pool")
        assert done.value("trains") == run.id
        assert run.record.state == "running"
    assert [point.step for point in read_metrics(store, run.id, "loss")] == [0, 1, 2]
    assert (run.record.state, run.record.tags) == ("finished", {"worker": "yes"})
    (inner,) = store.records.find(Run, ("name", "=", "inner"))
    assert inner.parent == run.id


def test_a_step_of_this_process_does_so_as_well(store: Store) -> None:
    with start_run("turn", store=store) as run:
        assert run_graph(Graph.wire([trains]), store, run=run).value("trains") == run.id
    assert run.record.metrics == {"loss": 2.0}
