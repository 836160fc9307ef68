"""experiments/search-datasets: which datasets the runs of experiments have read, each once, to choose from."""

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
"""Number of the experiment, name and digest of the dataset, and what it was read for, where that was said."""


def search_datasets(ask: HandlerContext) -> Mapping[str, Any]:
    asked = ask.fields.texts("experiment_ids")
    if not asked:
        raise MlflowError("SearchDatasets request must specify at least one experiment_id.")
    if len(asked) > MOST_EXPERIMENTS:
        raise MlflowError(
            f"SearchDatasets request cannot specify more than {MOST_EXPERIMENTS} experiment_ids."
            f" Received {len(asked)} experiment_ids."
        )
    found: dict[Summary, None] = {}
    for run in _runs(ask.store, experiment_numbers(asked)):
        for said in datasets_of(run):
            found[run.experiment or DEFAULT, said["name"], said["digest"], said["context"]] = None
        if len(found) >= MOST:
            break
    return {"dataset_summaries": [_out(summary) for summary in list(found)[:MOST]]} if found else {}


def _runs(store: Store, numbers: Sequence[str]) -> Iterator[Run]:
    """The experiments' runs in the order in which they came, put away or not."""
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
    answer = {"experiment_id": experiment, "name": name, "digest": digest}
    return answer if context is None else {**answer, "context": context}


ROUTES = (
    HandlerRoute("POST", "2.0/mlflow/experiments/search-datasets", search_datasets, "read", slow=True),
    # MLflow's definition of the route lacks the slash, so clients made from it ask here.
    HandlerRoute("POST", "2.0mlflow/experiments/search-datasets", search_datasets, "read", slow=True),
)
