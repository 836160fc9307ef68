"""Predictions of a period, with their labels where these have arrived: the rows on which performance is measured.

A plain table with the same columns serves as well, so everything that measures such rows works without a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.monitoring.logged_windows import INPUT, due_until, read_labels, read_window
from everloop.records import ModelVersion
from everloop.stores.durations import parse_duration

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.stores import Store
    from everloop.training.trained_model import Task

_LABEL_COLUMNS = ("actual", "actual_text", "predicted", "label_event_at", "label_arrived_at")


def read_performance_rows(
    store: Store,
    endpoint: str,
    since: datetime | None,
    until: datetime | None,
    *,
    version: str | None = None,
    labels_after: str | timedelta = "0s",
) -> pl.DataFrame:
    """Return predictions, oldest first, with their labels where there are any.

    Args:
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.
        version: key of a model version, for its predictions in any role. None: all predictions that clients received.
        labels_after: predictions younger than this are left out, because early labels are rarely a fair sample.

    Returns:
        The columns of the prediction log with the inputs as `input_<name>`, and `actual`, `actual_text`,
        `label_event_at`, `label_arrived_at` and `predicted` (index of the predicted class); null without a label.

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint does not exist.
    """
    import polars as pl

    wait = parse_duration(labels_after) if isinstance(labels_after, str) else labels_after
    end = due_until(store, until if until is not None else store.now(), wait)
    predictions = read_window(store, endpoint, since, end, version=version)
    labelled = read_labels(store, endpoint, since, end, version=version)
    known = labelled.select("id", *(name for name in _LABEL_COLUMNS if name in labelled.columns))
    joined = predictions.join(known.unique("id"), on="id", how="left", maintain_order="left")
    return _with_plain_inputs(store, joined).with_columns(pl.col("actual").cast(pl.Float64))


def input_of(rows: pl.DataFrame, name: str) -> str:
    """Return the column that holds an input or another column of the rows.

    Raises:
        UsageError: the rows have no such column.
    """
    for column in (f"{INPUT}{name}", name):
        if column in rows.columns:
            return column
    inputs = [column.removeprefix(INPUT) for column in rows.columns if column.startswith(INPUT)]
    raise UsageError(
        f"The predictions have no input '{name}'.", help=f"Use 'version' or one of: {', '.join(inputs) or 'none'}"
    )


def task_of_rows(store: Store, rows: pl.DataFrame) -> Task | None:
    """Return the task of the versions that answered; None if none of them is registered with one."""
    for version in rows["version"].unique().sort().to_list():
        found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
        if found and found[0].signature and found[0].signature.get("task"):
            task: Task = found[0].signature["task"]
            return task
    return None


def _with_plain_inputs(store: Store, rows: pl.DataFrame) -> pl.DataFrame:
    """Give every input one column, also if its type differs between versions and the log has several."""
    from everloop.packages.signature import Signature
    from everloop.prediction_log.log_reading import read_inputs

    typed = [name for name in rows.columns if name.startswith(INPUT) and "@" in name]
    if not typed:
        return rows
    for version in rows["version"].unique().sort(descending=True).to_list():
        found = store.records.find(ModelVersion, ("key", "=", version), limit=1)
        if found and found[0].signature:
            inputs = read_inputs(rows, Signature.from_json(found[0].signature))
            return rows.drop(typed).with_columns(inputs[name].alias(f"{INPUT}{name}") for name in inputs.columns)
    return rows
