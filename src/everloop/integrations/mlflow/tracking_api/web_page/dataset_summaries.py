"""Route experiments/search-datasets: lists the datasets that the runs of experiments have read, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.handler_context import HandlerContext, HandlerRoute
from everloop.integrations.mlflow.tracking_api.run_search_routes import datasets_of, experiment_numbers
from everloop.integrations.mlflow.tracking_api.serializers import DEFAULT
from everloop.records import Run

if TYPE_CHECKING:
    from everloop.stores import Store

MOST_EXPERIMENTS = 20
MOST = 1000
_PER_READ = 2000

Summary = tuple[str, str, str, str | None]
"""(experiment number, name and digest of the dataset, its context or None)."""


def search_datasets(context: HandlerContext) -> Mapping[str, Any]:
    experiments = context.fields.texts("experiment_ids")
    if not experiments:
        raise MlflowError("SearchDatasets request must specify at least one experiment_id.")
    if len(experiments) > MOST_EXPERIMENTS:
        raise MlflowError(
            f"SearchDatasets request cannot specify more than {MOST_EXPERIMENTS} experiment_ids."
            f" Received {len(experiments)} experiment_ids."
        )
    found: dict[Summary, None] = {}
    for run in _runs(context.store, experiment_numbers(experiments)):
        for dataset in datasets_of(run):
            found[run.experiment or DEFAULT, dataset["name"], dataset["digest"], dataset["context"]] = None
        if len(found) >= MOST:
            break
    return {"dataset_summaries": [_out(summary) for summary in list(found)[:MOST]]} if found else {}


def _runs(store: Store, numbers: Sequence[str]) -> Iterator[Run]:
    """Yield the experiments' runs in the order in which they were created, deleted or not."""
    wanted = (*numbers, None) if DEFAULT in numbers else tuple(numbers)
    last: str | None = None
    while True:
        runs = store.records.find(Run, ("experiment", "in", wanted), limit=_PER_READ, after=last)
        yield from runs
        if len(runs) < _PER_READ:
            return
        last = runs[-1].id


def _out(summary: Summary) -> dict[str, str]:
    experiment, name, digest, context = summary
    payload = {"experiment_id": experiment, "name": name, "digest": digest}
    return payload if context is None else {**payload, "context": context}


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/experiments/search-datasets", search_datasets, "read", slow=True),
    # MLflow's definition of the route lacks a slash, so clients that were generated from it use this path.
    HandlerRoute("POST", "2.0mlflow/experiments/search-datasets", search_datasets, "read", slow=True),
)
