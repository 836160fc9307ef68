"""What monitoring reads: an endpoint's predictions and their labels, as they were known at the store's time.

A row counts once it has arrived: what the store's clock has not reached does not exist. Reading folds what endpoints
have appended first, so no other process has to run.
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
"""What stands before a feature's name in the columns of a window."""


def read_window(
    store: Store,
    endpoint: str,
    since: datetime | None,
    until: datetime | None,
    *,
    version: str | None = None,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """The predictions with `since <= event_at < until`, oldest first; columns as the prediction log has them.

    Args:
        version: key of a model version: its predictions in whatever role. None: every answer that a client got.
        columns: which columns; default: all.

    Raises:
        EmptySampleError: there are none.
        NotFoundError: no such endpoint.
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
            help=f"The last of any version is from {_text(last)}." if last else "It has none at all yet.",
        )
    return found


def read_inputs_and_score(
    store: Store, endpoint: str, version: str, since: datetime, until: datetime, features: Sequence[str]
) -> pl.DataFrame:
    """A version's predictions as `input_<feature>` and `score`; a feature that was not logged has no column.

    Raises:
        EmptySampleError: there are none.
        NotFoundError: no such endpoint.
    """
    import polars as pl

    from everloop.packages.signature import Signature
    from everloop.prediction_log.log_reading import read_inputs

    rows = read_window(store, endpoint, since, until, version=version)
    registered = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    if registered and registered[0].signature:
        # An input that changed its type between versions stands in a column of its own; the signature finds it.
        signature = Signature.from_json(registered[0].signature)
        inputs = read_inputs(rows, signature).rename(lambda name: f"{INPUT}{name}")
    else:
        inputs = rows.select(pl.col(f"^{INPUT}.*$"))
    wanted = {f"{INPUT}{name}" for name in features}
    return pl.DataFrame([*(inputs[name] for name in inputs.columns if name in wanted), rows["score"]])


def read_truths(
    store: Store,
    endpoint: str,
    since: datetime | None,
    until: datetime | None,
    *,
    version: str | None = None,
    horizon: timedelta | None = None,
) -> pl.DataFrame:
    """The predictions whose label has arrived, oldest first, with `actual`: 0 or 1, the class's index, or the value;
    null where the label is not a class of the version that answered (`actual_text` has it).

    Args:
        horizon: how long after a prediction a label may still be about it; default: as the endpoint's settings say.
    """
    from everloop.prediction_log.log_reading import fold_logs, read_labelled

    fold_logs(store, endpoint)
    view = store.as_of(store.now())
    return read_labelled(view, endpoint, since, until, version, roles=_roles(version), horizon=horizon).collect()


def due_until(store: Store, until: datetime, labels_after: timedelta) -> datetime:
    """The end of what can be judged: labels of later predictions are not expected yet, and early ones mislead."""
    return min(until, store.now() - labels_after)


def _roles(version: str | None) -> tuple[str, ...] | None:
    from everloop.prediction_log.label_matching import ANSWERED

    # A shadow's answers are its own, but no client got them.
    return ANSWERED if version is None else None


def _text(moment: datetime | None) -> str:
    return moment.isoformat(sep=" ", timespec="minutes") if moment is not None else "ever"
