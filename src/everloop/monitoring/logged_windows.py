"""Read an endpoint's predictions and labels for monitoring, as they are known at the time of the store's clock.

Rows that arrive later than the store's clock do not exist yet. Reading first folds the journals that endpoints have
written, so no other process has to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import EmptySampleError
from everloop.records import ModelVersion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    import polars as pl

    from everloop.data.sketches.column_sketches import Sketch
    from everloop.monitoring.baseline import Baseline
    from everloop.monitoring.window_counts import Array
    from everloop.stores import Store

_LEAST_SHARE = 0.01
_MOST_ABSENT = 0.1
"""How much of a window may have passed before a version's first prediction in it, and after its last one."""
MOST_CORRELATED = 100_000
"""From about this many rows of a window correlations are measured."""
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
    where: pl.Expr | None = None,
) -> pl.DataFrame:
    """Return the predictions with `since <= event_at < until`, oldest first, with the columns of the prediction log.

    Args:
        version: key of a model version, for its predictions in any role. None: all predictions that clients received.
        columns: the columns to read. Default: all.
        where: a condition that rows must meet. Default: none.

    Raises:
        EmptySampleError: there are no such predictions.
        NotFoundError: the endpoint does not exist.
    """
    import polars as pl

    from everloop.prediction_log.log_reading import fold_logs, read_predictions

    fold_logs(store, endpoint)
    view = store.as_of(store.now())
    rows = read_predictions(view, endpoint, since, until, version, roles=_roles(version)).sort("event_at")
    if where is not None:
        rows = rows.filter(where)
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


@dataclass(frozen=True, slots=True)
class LoggedWindow:
    """The sketches of one window of a version's predictions, with the cells of its baseline."""

    rows: int
    features: dict[str, Sketch]
    score: Sketch | None


def read_sketches(
    store: Store, endpoint: str, version: str, since: datetime, until: datetime, baseline: Baseline
) -> LoggedWindow | None:
    """Return the sketches of a version's predictions in a window; None if there are none.

    They come from the hourly aggregates of the log. If the aggregates were counted with other cells than those of
    `baseline`, the rows are read.

    Raises:
        NotFoundError: the endpoint does not exist.
    """
    from everloop.prediction_log.aggregates import read_aggregates

    for window in read_aggregates(store, endpoint, since, until, version):
        if window.version != version or not window.rows:
            continue
        same = {name: sketch.bins for name, sketch in window.inputs.items()} == baseline.bins
        if same and (baseline.score is None) == (window.score is None):
            return LoggedWindow(window.rows, window.inputs, window.score)
        rows = read_inputs_and_score(store, endpoint, version, since, until, baseline.columns)
        features, score = sketch_window(baseline, rows)
        return LoggedWindow(rows.height, features, score)
    return None


def correlated_rows(rows: Array) -> Array:
    """Return from how many rows `read_correlations` measures windows with these numbers of rows, shape (windows,)."""
    import numpy as np

    return np.asarray(rows / np.maximum(np.ceil(rows / MOST_CORRELATED), 1))


def read_correlations(
    store: Store, endpoint: str, version: str, since: datetime, until: datetime, baseline: Baseline, rows: int
) -> Array | None:
    """Return the Fisher-transformed correlations of a window for the baseline's pairs; None if it has none.

    The hourly aggregates do not have them, so rows are read: all of them, or every k-th if there are very many.

    Args:
        rows: number of predictions in the window.
    """
    import numpy as np
    import polars as pl

    from everloop.data.sketches.derived_columns import derive
    from everloop.data.sketches.pair_correlations import LEAST_ROWS, correlate_blocks

    if baseline.pairs is None or rows < LEAST_ROWS:
        return None
    every = -(-rows // MOST_CORRELATED)
    chosen = None if every <= 1 else pl.col("id").hash(0) % every == 0
    # Without derived numbers, only the columns of the pairs are needed.
    names = baseline.columns if baseline.derived else baseline.pairs.names
    found = read_inputs_and_score(store, endpoint, version, since, until, names, where=chosen)
    found = derive(found, baseline.derived, columns={name: f"{INPUT}{name}" for name in baseline.derived})
    measured = correlate_blocks(
        found,
        baseline.features.sketches,
        baseline.pairs.names,
        np.zeros(found.height, dtype=np.int64),
        1,
        columns={name: f"{INPUT}{name}" for name in baseline.pairs.names},
    )
    return np.asarray(measured.correlations()[0])


def answering_versions(store: Store, endpoint: str, since: datetime, until: datetime) -> list[str]:
    """Return the versions that answered clients in a window and have a baseline, most predictions first.

    Versions with less than a hundredth of the predictions are left out, and so are versions that answered only in a
    part of the window, unless they are alone.

    Raises:
        EmptySampleError: no client received a prediction in the window.
        NotFoundError: the endpoint does not exist, or none of the versions that answered has a baseline.
    """
    from everloop.monitoring.baseline import find_baseline, load_baseline
    from everloop.prediction_log.aggregates import read_aggregates

    windows = [window for window in read_aggregates(store, endpoint, since, until) if window.rows]
    if not windows:
        raise EmptySampleError(
            f"'{endpoint}' has no predictions between {_text(since)} and {_text(until)}.", help="Choose another window."
        )
    if len(windows) > 1:
        through = _answered_throughout(store, endpoint, since, until)
        windows = [window for window in windows if window.version in through] or windows[:1]
    total = sum(window.rows for window in windows)
    ordered = [w.version for w in sorted(windows, key=lambda w: -w.rows) if w.rows >= _LEAST_SHARE * total]
    known = [version for version in ordered if find_baseline(store, version) is not None]
    if not known:
        load_baseline(store, ordered[0])
    return known


def _answered_throughout(store: Store, endpoint: str, since: datetime, until: datetime) -> set[str]:
    """Return the versions that answered from the beginning of a window to its end.

    A version that was released on a Thursday has seen no other weekdays of that week, which is not drift.
    """
    import polars as pl

    from everloop.prediction_log.label_matching import ANSWERED
    from everloop.prediction_log.log_reading import read_predictions

    view = store.as_of(store.now())
    rows = read_predictions(view, endpoint, since, until, roles=ANSWERED)
    seen = rows.group_by("version").agg(pl.col("event_at").min().alias("first"), pl.col("event_at").max().alias("last"))
    slack = (until - since) * _MOST_ABSENT
    found = seen.filter(pl.col("first") <= since + slack, pl.col("last") >= until - slack).collect()
    return set(found["version"].to_list())


def sketch_window(baseline: Baseline, predictions: pl.DataFrame) -> tuple[dict[str, Sketch], Sketch | None]:
    """Sketch logged predictions with the bins of the baseline: the features, and the score if both sides have one.

    Raises:
        EmptySampleError: there are no predictions.
    """
    from everloop.data.sketches.column_sketches import sketch_frame
    from everloop.data.sketches.derived_columns import derive
    from everloop.monitoring.baseline import PREDICTION

    if predictions.height == 0:
        raise EmptySampleError("A window without predictions cannot be compared.", help="Choose a longer window.")
    # One pass for features and score together. The prefix keeps a feature called `score` apart from the score.
    predictions = derive(predictions, baseline.derived, columns={name: f"{INPUT}{name}" for name in baseline.derived})
    keyed = {f"{INPUT}{name}": cells for name, cells in baseline.bins.items()}
    if baseline.score is not None and "score" in predictions.columns:
        keyed["score"] = baseline.score.sketches[PREDICTION].bins
    sketches = sketch_frame(predictions, keyed)
    score = sketches.pop("score", None)
    return {key.removeprefix(INPUT): sketch for key, sketch in sketches.items()}, score


def read_inputs_and_score(
    store: Store,
    endpoint: str,
    version: str,
    since: datetime,
    until: datetime,
    features: Sequence[str],
    *,
    where: pl.Expr | None = None,
) -> pl.DataFrame:
    """Return a version's predictions as `input_<feature>` and `score`. A feature that was not logged has no column.

    Raises:
        EmptySampleError: there are no such predictions.
        NotFoundError: the endpoint does not exist.
    """
    rows = read_window(store, endpoint, since, until, version=version, where=where)
    inputs = _inputs_of(store, version, rows)
    wanted = {f"{INPUT}{name}" for name in features}
    return inputs.select(name for name in inputs.columns if name in wanted).with_columns(rows["score"])


def read_sample(
    store: Store, endpoint: str, version: str, since: datetime, until: datetime, *, rows: int, most: int
) -> pl.DataFrame | None:
    """Return a sample of a version's predictions with `input_<name>`, `score` and `scores`; None if there are none.

    Args:
        rows: how many predictions there are.
        most: about how many to return at most. Which ones follows from their ids.
    """
    import polars as pl

    from everloop.prediction_log.log_reading import read_predictions

    step = max(1, -(-rows // most))
    found = read_predictions(store.as_of(store.now()), endpoint, since, until, version)
    found = found if step == 1 else found.filter(pl.col("id").hash(seed=0) % step == 0)
    sample = found.collect(engine="streaming")
    if sample.height == 0:
        return None
    scores = [sample[name] for name in ("score", "scores") if name in sample.columns]
    return _inputs_of(store, version, sample).with_columns(scores)


def _inputs_of(store: Store, version: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the logged inputs as `input_<name>`."""
    import polars as pl

    from everloop.packages.signature import Signature
    from everloop.prediction_log.log_reading import read_inputs

    registered = store.records.find(ModelVersion, ("key", "=", version), limit=1)
    if registered and registered[0].signature:
        # An input whose type differs between versions has one column per type. The signature selects the right one.
        signature = Signature.from_json(registered[0].signature)
        return read_inputs(rows, signature).rename(lambda name: f"{INPUT}{name}")
    return rows.select(pl.col(f"^{INPUT}.*$"))


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
