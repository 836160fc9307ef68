"""Read an endpoint's predictions and labels for monitoring, as they are known at the time of the store's clock.

Rows that arrive later than the store's clock do not exist yet. Reading first folds the journals that endpoints have
written, so no other process has to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.records import ModelVersion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.stores import Store

INPUT = "input_"
"""Prefix of a feature's name in the columns of a window."""


def read_window(
    store: Store,
    endpoint: str,
    since: datetime | None,
    until: datetime | None,
    *,
    version: str | None = None,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Return the predictions with `since <= event_at < until`, oldest first, with the columns of the prediction log.

    Args:
        version: key of a model version, for its predictions in any role. None: all predictions that clients received.
        columns: the columns to read. Default: all.

    Raises:
        EmptySampleError: there are no such predictions.
        NotFoundError: the endpoint does not exist.
    """
    import polars as pl

    from everloop.prediction_log.log_reading import fold_logs, read_predictions

    fold_logs(store, endpoint)
    view = store.as_of(store.now())
    rows = read_predictions(view, endpoint, since, until, version, roles=_roles(version)).sort("event_at")
    found = (rows if columns is None else rows.select(columns)).collect()
    if found.height == 0:
        last = read_predictions(view, endpoint).select(pl.col("event_at").max()).collect().item()
        raise EmptySampleError(
            f"'{endpoint}' has no predictions{f' of {version}' if version else ''} between {_text(since)} and "
            f"{_text(until)}.",
            help=f"Its last prediction, of any version, is from {_text(last)}."
            if last
            else "It has no predictions yet. Send a request first.",
        )
    return found


def read_inputs_and_score(
    store: Store, endpoint: str, version: str, since: datetime, until: datetime, features: Sequence[str]
) -> pl.DataFrame:
    """Return a version's predictions as `input_<feature>` and `score`. A feature that was not logged has no column.

    Raises:
        EmptySampleError: there are no such predictions.
        NotFoundError: the endpoint does not exist.
    """
    import polars as pl

    from everloop.packages.signature import Signature
    from everloop.prediction_log.log_reading import read_inputs

    rows = read_window(store, endpoint, since, until, version=version)
    registered = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    if registered and registered[0].signature:
        # An input whose type differs between versions has one column per type. The signature selects the right one.
        signature = Signature.from_json(registered[0].signature)
        inputs = read_inputs(rows, signature).rename(lambda name: f"{INPUT}{name}")
    else:
        inputs = rows.select(pl.col(f"^{INPUT}.*$"))
    wanted = {f"{INPUT}{name}" for name in features}
    return pl.DataFrame([*(inputs[name] for name in inputs.columns if name in wanted), rows["score"]])


def read_labels(
    store: Store,
    endpoint: str,
    since: datetime | None,
    until: datetime | None,
    *,
    version: str | None = None,
    horizon: timedelta | None = None,
) -> pl.DataFrame:
    """Return the predictions whose label has arrived, oldest first, with the label as `actual`.

    `actual` is 0 or 1, the index of a class, or a number. It is null if the label is not a class of the version that
    answered; `actual_text` then has the label.

    Args:
        horizon: how long after a prediction its label may arrive. Default: the endpoint's setting.
    """
    from everloop.prediction_log.log_reading import fold_logs, read_labelled

    fold_logs(store, endpoint)
    view = store.as_of(store.now())
    return read_labelled(view, endpoint, since, until, version, roles=_roles(version), horizon=horizon).collect()


def due_until(store: Store, until: datetime, labels_after: timedelta) -> datetime:
    """Return the end of the period whose labels are due. The few labels that arrive early are not a fair sample."""
    return min(until, store.now() - labels_after)


def _roles(version: str | None) -> tuple[str, ...] | None:
    from everloop.prediction_log.label_matching import ANSWERED

    # Predictions of a shadow count for its version, but no client received them.
    return ANSWERED if version is None else None


def _text(moment: datetime | None) -> str:
    return moment.isoformat(sep=" ", timespec="minutes") if moment is not None else "ever"
