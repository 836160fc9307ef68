"""Which inputs the model leans on, over time: the effect of shuffling each of them on live rows.

Source: permutation importance, Breiman, "Random forests", Machine Learning 45 (2001), section 10. Without labels, the
effect is the mean change of the score. With labels, it is how much worse a metric becomes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from everloop.errors import DataError, EmptySampleError, UsageError
from everloop.monitoring.measures.tail_probabilities import normal_quantile
from everloop.monitoring.performance.labelled_predictions import read_performance_rows
from everloop.monitoring.performance.metrics_over_time import cut_into_periods
from everloop.training.metrics import Metric, get_metric, score, scores_for

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import polars as pl
    from numpy.typing import ArrayLike, NDArray

    from everloop.stores import Store
    from everloop.training.class_decisions import ClassScores

    Array = NDArray[np.float64]

MOST_ROWS = 2000
"""Of a longer period, this many rows are drawn."""
_REPEATS = 5
_Z = normal_quantile(0.025)


class Scorer(Protocol):
    """Anything that scores a frame, such as `Predictor`."""

    def answer_frame(self, frame: pl.DataFrame) -> ClassScores: ...


def attribution_over_time(
    store: Store,
    endpoint: str,
    version: str,
    every: str = "1mo",
    *,
    metric: str | Metric | None = None,
    features: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Measure the importance of each input of a version for each period of its predictions.

    Args:
        version: key of the version, such as `delays@3`. Its package must be readable here.
        every: length of a period in Polars' notation, such as `1d`, `1w` or `1mo`.
        metric: measure how much worse this metric becomes on labelled rows. None: the mean absolute change of the
            score on all rows.
        features: the inputs to shuffle. Default: all.
        since: start, by `event_at` of the predictions. Default: the first prediction.
        until: end, exclusive. Default: now.
        seed: the same seed draws and shuffles the same rows.

    Returns:
        One row for each period and input: `from`, `to`, `feature`, `rows`, `importance` with its 95 % interval from
        `low` to `high` (null if it is undefined), and `share` of the sum over all inputs.

    Raises:
        EmptySampleError: there are no predictions.
        NotFoundError: the endpoint or the version does not exist.
        UsageError: an input or the metric does not exist, or the period cannot be read.
    """
    import polars as pl

    from everloop.prediction_log.log_reading import read_inputs
    from everloop.registry.version_packages import load_model

    model = load_model(store, version)
    if metric is not None:
        get_metric(metric, model.task)
    rows = read_performance_rows(store, endpoint, since, until, version=version)
    found = []
    for (start, end), part in cut_into_periods(rows, every).group_by("from", "to", maintain_order=True):
        usable = part.filter(pl.col("actual").is_finite()) if metric is not None else part
        if usable.height == 0:
            continue
        drawn = usable.sample(min(usable.height, MOST_ROWS), seed=seed)
        inputs = read_inputs(drawn, model.signature)
        actual = drawn["actual"].to_numpy() if metric is not None else None
        measured = permutation_importance(model, inputs, actual, metric, features=features, seed=seed)
        found.append(measured.select(pl.lit(start).alias("from"), pl.lit(end).alias("to"), pl.all()))
    if not found:
        raise EmptySampleError(
            f"None of the predictions of {version} in this period has a label.",
            help="Leave out `metric`, or send labels.",
        )
    return pl.concat(found)


def permutation_importance(
    model: Scorer,
    inputs: pl.DataFrame,
    actual: ArrayLike | None = None,
    metric: str | Metric | None = None,
    *,
    features: Sequence[str] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Measure how much shuffling each input changes the scores, or a metric.

    Args:
        model: scores frames with the columns of `inputs`.
        inputs: n rows.
        actual: labels of shape (n,), for `metric`.
        metric: a name in `everloop.training.METRICS`, or a metric. None: the mean absolute change of the score.
        features: columns to shuffle. Default: all.
        seed: the same seed shuffles alike.

    Returns:
        One row for each feature, in their order: `feature`, `rows`, `importance`, `low`, `high`, `share`. The interval
        covers chance in the rows (for scores) or in the shuffles (for a metric).

    Raises:
        EmptySampleError: there are no rows.
        DataError: a metric without labels.
        UsageError: a feature is not a column, or the metric does not exist.
    """
    import polars as pl

    if inputs.height == 0:
        raise EmptySampleError("The importance of inputs cannot be measured without rows.", help="Choose more rows.")
    names = list(features) if features is not None else inputs.columns
    unknown = [name for name in names if name not in inputs.columns]
    if unknown:
        raise UsageError(f"There is no input '{unknown[0]}'.", help=f"Inputs: {', '.join(inputs.columns)}")
    if metric is not None and actual is None:
        raise DataError("A metric needs labels.", help="Pass `actual`, or leave out `metric`.")
    one = get_metric(metric) if metric is not None else None
    labels = None if actual is None else np.asarray(actual, dtype=np.float64)
    rng = np.random.default_rng(seed)
    base = model.answer_frame(inputs)
    found: list[dict[str, Any]] = []
    for name in names:
        effects = []
        for _ in range(_REPEATS):
            order = rng.permutation(inputs.height)
            shuffled = model.answer_frame(inputs.with_columns(inputs[name].gather(order).alias(name)))
            if one is None or labels is None:
                effects.append(_changes(base.scores, shuffled.scores))
            else:
                before = score(one, labels, scores_for(one, base.scores, base.places))
                after = score(one, labels, scores_for(one, shuffled.scores, shuffled.places))
                effects.append(np.array([one.gain(before, after)]))
        found.append({"feature": name, "rows": inputs.height, **_summary(np.stack(effects), inputs.height)})
    schema: dict[str, Any] = {"feature": pl.String(), "rows": pl.Int64()}
    schema |= dict.fromkeys(("importance", "low", "high"), pl.Float64())
    importance = pl.col("importance").clip(lower_bound=0.0)
    total = importance.sum()
    share = pl.when(total > 0).then(importance / total)
    return pl.DataFrame(found, schema=schema).with_columns(share.alias("share"))


def _changes(before: Array, after: Array) -> Array:
    """Return the mean absolute change of each row's scores, shape (n,)."""
    change = np.abs(after - before)
    return change if change.ndim == 1 else change.mean(axis=1)


def _summary(effects: Array, rows: int) -> dict[str, float | None]:
    """Return the mean of effects of shape (repeats, rows or 1) with its interval. One row alone cannot be shuffled."""
    value = float(effects.mean()) if rows > 1 else math.nan
    of_rows = effects.mean(axis=0) if effects.shape[1] > 1 else effects[:, 0]
    error = float(of_rows.std(ddof=1)) / math.sqrt(len(of_rows)) if len(of_rows) > 1 else math.nan
    numbers = {"importance": value, "low": value - _Z * error, "high": value + _Z * error}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}
