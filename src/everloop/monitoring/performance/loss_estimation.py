"""Estimate the performance of a regression before labels arrive, with a second model that predicts the losses.

The model learns from labelled reference rows how large the losses are for which inputs and predictions. The expected
loss of a window is its mean prediction there. This holds as long as rows with equal inputs have equal expected losses.
It cannot notice concept drift; see `LossEstimator.check`.

Source: direct loss estimation (DLE) of NannyML; the mean absolute errors of both are compared in
benchmarks/estimation.py. The model is an average over five fits, each without one fifth of the reference, and over two
kinds of models: with and without a trend. The first continues into sparse tails, the second does not, and the reference
cannot tell which is right where it has few rows. So half of their difference counts as an error of the model. Chance in
the reference is measured by the delete-a-group jackknife: Kott, "The delete-a-group jackknife", Journal of Official
Statistics 17 (2001). With five groups it has four degrees of freedom, so it is widened from the quantile of the normal
distribution to that of t. It misses what all fits have in common, so the rows that each fit has not seen are counted as
well: by cell of each input, how far their losses are from the predictions, weighted as the window's rows are. Where the
window has many rows and the reference has few, this is large. The variance of a single loss is taken to grow with the
square of its mean, as for a scale family of errors, and is at least that of the cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import CorruptionError, DataError, EmptySampleError, UsageError
from everloop.monitoring.measures.block_spread import spread_beyond_chance
from everloop.monitoring.performance.boosted_trees import BoostedTrees, fit_trees
from everloop.monitoring.performance.input_codes import InputCodes
from everloop.monitoring.performance.performance_estimates import (
    EstimateCheck,
    PerformanceEstimate,
    compare_with_labels,
    new_estimate,
)
from everloop.training.metrics import get_metric, score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl
    from numpy.typing import ArrayLike, NDArray

    from everloop.records import Json

    Array = NDArray[np.float64]
    Codes = NDArray[np.int32]

FORMAT = 2
_GROUPS = 5
_FEW_GROUPS = 2.7764451 / 1.9599640
"""Quantile of t with four degrees of freedom, in units of that of the normal distribution, both at 97.5 %."""
_FEW_ROWS = 10.0
"""Rows of a cell as which the variance of all losses counts."""
_RIDGE = 0.01
"""Penalty of the trend for each row, in standardised units."""
_TREES = 60
_LEAST_ROWS = 50
_MOST_ROWS = 20_000
"""Larger references are sampled. More rows hardly improve the estimate."""
_BLOCKS = 12
_LEAST_BLOCK_ROWS = 50
_PREDICTION = "__prediction__"
_TINY = float(np.finfo(np.float64).eps)

_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "absolute": lambda actual, predicted: np.abs(predicted - actual),
    "squared": lambda actual, predicted: (predicted - actual) ** 2,
    "relative": lambda actual, predicted: np.abs(predicted - actual) / np.maximum(np.abs(actual), _TINY),
    "signed": lambda actual, predicted: predicted - actual,
}
_LOSSES_OF = {
    "mae": ("absolute",),
    "rmse": ("squared",),
    "mape": ("relative",),
    "r2": ("squared", "signed"),
}
ESTIMATED = tuple(_LOSSES_OF)
"""The metrics of regressions that can be estimated. The median error is not a mean of losses."""


@dataclass(frozen=True, slots=True, eq=False)
class TrendAndTrees:
    """A quadratic trend of the numeric inputs, and trees for what it leaves over."""

    trend: tuple[float, ...]
    trees: BoostedTrees

    @classmethod
    def fit(cls, columns: Array, codes: Codes, bins: int, target: Array, seed: int) -> TrendAndTrees:
        """Fit both. `columns` and `codes` are those of `InputCodes`."""
        penalty = np.full(columns.shape[1], _RIDGE * len(target))
        penalty[0] = 1e-9
        gram = np.einsum("ni,nj->ij", columns, columns) + np.diag(penalty)
        trend = np.linalg.solve(gram, np.einsum("ni,n->i", columns, target))
        rest = target - np.einsum("ni,i->n", columns, trend)
        return cls(tuple(trend.tolist()), fit_trees(codes, bins, rest, trees=_TREES, seed=seed))

    def predict(self, columns: Array, codes: Codes) -> Array:
        """Return predictions of shape (n,)."""
        found: Array = np.einsum("ni,i->n", columns, np.asarray(self.trend)) + self.trees.predict(codes)
        return found

    def to_json(self) -> dict[str, Json]:
        return {"trend": list(self.trend), "trees": self.trees.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> TrendAndTrees:
        return cls(tuple(map(float, data["trend"])), BoostedTrees.from_json(data["trees"]))


@dataclass(frozen=True, slots=True, eq=False)
class LossModel:
    """Models of one loss, each fitted without one group of the reference.

    Attributes:
        groups: with a trend.
        dispersion: variance of a loss divided by the square of its expectation, over the reference; for the signed
            error, its variance.
        plain: the same without a trend. Empty if an older version of everloop fitted the models.
        cells: what the models have missed in rows that they have not seen; by input and cell the number of rows, the
            mean and the variance, shape (inputs, 3, cells). None if an older version of everloop fitted the models.
    """

    groups: tuple[TrendAndTrees, ...]
    dispersion: float
    plain: tuple[BoostedTrees, ...] = ()
    cells: Array | None = None

    def missed(self, codes: Codes) -> tuple[float, float]:
        """Return how far the mean loss of a window may be from its prediction, and the variance of a single loss.

        Both are those of the input for which they are largest: its cells of the window are weighted by their rows. A
        mean that is further from 0 than its standard error counts as an error of the model.
        """
        if self.cells is None:
            return 0.0, 0.0
        error = variance = 0.0
        for code, (rows, means, variances) in zip(codes.T, self.cells, strict=True):
            share = np.bincount(code, minlength=len(rows)) / len(code)
            chance = float((share**2 * variances / rows).sum())
            bias = max(0.0, abs(float(share @ means)) - math.sqrt(chance))
            error = max(error, math.hypot(math.sqrt(chance), bias))
            variance = max(variance, float(share @ variances))
        return error, variance

    def predict(self, columns: Array, codes: Codes) -> tuple[Array, ...]:
        """Return the predictions of each kind of model, shape (groups, n) each."""
        trend = np.stack([model.predict(columns, codes) for model in self.groups])
        return (trend, np.stack([model.predict(codes) for model in self.plain])) if self.plain else (trend,)


@dataclass(frozen=True, slots=True, eq=False)
class LossEstimator:
    """Predicts the losses of a regression. Immutable; `to_json` and `from_json` round-trip.

    Attributes:
        inputs: bins of the inputs and of the prediction.
        losses: models by loss: absolute, squared, relative, signed.
        rows: number of labelled reference rows.
        measured: the metrics on the reference.
        between_blocks: by metric, the standard deviation of the error of the estimate between blocks of time, beyond
            chance. Empty if the reference had no times.
    """

    inputs: InputCodes
    losses: dict[str, LossModel]
    rows: int
    measured: dict[str, float] = field(default_factory=dict)
    between_blocks: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        inputs: pl.DataFrame,
        predicted: ArrayLike,
        actual: ArrayLike,
        metrics: str | Sequence[str] = ("rmse", "mae"),
        *,
        times: ArrayLike | None = None,
    ) -> LossEstimator:
        """Learn the losses from labelled rows that the model was not fitted on.

        Rows whose prediction or label is not a finite number are left out. Takes about a second for 10,000 rows of 10
        inputs and each loss.

        Args:
            inputs: the inputs of the model, n rows; numbers and categories. Other columns are ignored.
            predicted: shape (n,), what the model predicted.
            actual: shape (n,), the label.
            metrics: which of `ESTIMATED` will be estimated.
            times: shape (n,), numbers or datetimes. With them, the error of the estimate between blocks of time counts
                as noise. Without them, only chance does.

        Raises:
            EmptySampleError: fewer than 50 rows have a prediction and a label.
            DataError: the lengths differ.
            UsageError: a metric cannot be estimated.
        """
        names = _names(metrics, ESTIMATED)
        values, labels, kept = _labelled(inputs, predicted, actual)
        if len(labels) < _LEAST_ROWS:
            raise EmptySampleError(
                f"Only {len(labels)} rows have a prediction and a label, but a model of losses needs {_LEAST_ROWS}.",
                help="Wait for labels, or choose a longer period.",
            )
        rows = inputs.filter(kept)
        moments = None if times is None else np.asarray(times)[kept]
        if len(labels) > _MOST_ROWS:
            drawn = np.sort(np.random.default_rng(0).choice(len(labels), _MOST_ROWS, replace=False))
            rows, values, labels = rows[drawn], values[drawn], labels[drawn]
            moments = None if moments is None else moments[drawn]
        frame = _with_prediction(rows, values)
        codes_of = InputCodes.fit(frame, np.abs(values - labels))
        encoded = codes_of.trend(frame), codes_of.encode(frame)
        models, left_out = {}, {}
        for loss in dict.fromkeys(loss for name in names for loss in _LOSSES_OF[name]):
            target = _LOSSES[loss](labels, values)
            models[loss], left_out[loss] = _fit_groups(*encoded, codes_of.most, target, signed=loss == "signed")
        found = cls(codes_of, models, int(kept.sum()))
        found.measured.update({name: score(name, labels, values) for name in names})
        if moments is not None:
            found.between_blocks.update(found._between_blocks(names, values, labels, left_out, moments))
        return found

    @property
    def metrics(self) -> list[str]:
        """The metrics that can be estimated."""
        return [name for name, losses in _LOSSES_OF.items() if all(loss in self.losses for loss in losses)]

    def estimate(
        self, inputs: pl.DataFrame, predicted: ArrayLike, metrics: str | Sequence[str] | None = None
    ) -> dict[str, PerformanceEstimate]:
        """Estimate metrics of a window from its inputs and predictions.

        Rows whose prediction is not a finite number are left out. An input that the window does not have, or that has
        another type, counts as missing.

        Args:
            inputs: n rows.
            predicted: shape (n,).
            metrics: names. Default: all that the estimator was fitted for.

        Returns:
            Estimates by the name of the metric.

        Raises:
            EmptySampleError: no row has a prediction.
            DataError: the lengths differ.
            UsageError: the estimator was not fitted for a metric.
        """
        names = self.metrics if metrics is None else _names(metrics, self.metrics)
        values = _numbers(predicted)
        if values.shape != (inputs.height,):
            raise DataError(
                f"There are {inputs.height} rows of inputs, but predictions of shape {values.shape}.",
                help="Pass one prediction for each row.",
            )
        kept = np.isfinite(values)
        if not kept.any():
            raise EmptySampleError("The window has no row with a prediction.", help="Choose a longer window.")
        rows, values = inputs.filter(kept), values[kept]
        frame = _with_prediction(rows, values)
        encoded = self.inputs.trend(frame), self.inputs.encode(frame)
        kinds: dict[str, tuple[Array, ...]] = {}
        for loss in {loss for name in names for loss in _LOSSES_OF[name]}:
            found = self.losses[loss].predict(*encoded)
            kinds[loss] = found if loss == "signed" else tuple(np.maximum(one, 0.0) for one in found)
        missed = {loss: self.losses[loss].missed(encoded[1]) for loss in kinds}
        return {name: self._estimate(name, values, kinds, missed) for name in names}

    def check(
        self,
        inputs: pl.DataFrame,
        predicted: ArrayLike,
        actual: ArrayLike,
        metrics: str | Sequence[str] | None = None,
    ) -> list[EstimateCheck]:
        """Compare the estimates of labelled rows with their labels. The arguments are those of `fit` and `estimate`.

        Raises:
            EmptySampleError: no row has a prediction and a label.
            DataError: the lengths differ.
            UsageError: the estimator was not fitted for a metric.
        """
        values, labels, kept = _labelled(inputs, predicted, actual)
        if len(labels) == 0:
            raise EmptySampleError(
                "No row has both a prediction and a label.", help="Wait for labels, or choose a longer period."
            )
        estimates = self.estimate(inputs.filter(kept), values, metrics)
        return compare_with_labels([(estimate, score(name, labels, values)) for name, estimate in estimates.items()])

    def to_json(self) -> dict[str, Json]:
        """Return plain data for JSON."""
        return {
            "format": FORMAT,
            "inputs": self.inputs.to_json(),
            "losses": {
                loss: {
                    "groups": [one.to_json() for one in model.groups],
                    "dispersion": model.dispersion,
                    "plain": [one.to_json() for one in model.plain],
                    "cells": None if model.cells is None else model.cells.tolist(),
                }
                for loss, model in self.losses.items()
            },
            "rows": self.rows,
            "measured": {name: value if math.isfinite(value) else None for name, value in self.measured.items()},
            "between_blocks": dict(self.between_blocks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> LossEstimator:
        """Read what `to_json` returned.

        Raises:
            CorruptionError: the data is not an estimator, or a newer version of everloop wrote it.
        """
        try:
            if data["format"] > FORMAT:
                raise ValueError(f"format {data['format']} is newer than {FORMAT}")
            return cls(
                InputCodes.from_json(data["inputs"]),
                {
                    loss: LossModel(
                        tuple(map(TrendAndTrees.from_json, model["groups"])),
                        float(model["dispersion"]),
                        tuple(map(BoostedTrees.from_json, model.get("plain", ()))),
                        None if model.get("cells") is None else np.asarray(model["cells"], dtype=np.float64),
                    )
                    for loss, model in data["losses"].items()
                },
                int(data["rows"]),
                {name: math.nan if value is None else float(value) for name, value in data["measured"].items()},
                {name: float(value) for name, value in data["between_blocks"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"The content is not a loss estimator: {error!r}.") from error

    def _estimate(
        self,
        metric: str,
        predicted: Array,
        kinds: Mapping[str, tuple[Array, ...]],
        missed: Mapping[str, tuple[float, float]],
    ) -> PerformanceEstimate:
        """Estimate a metric from the expected losses of each row, by loss and kind of model, shape (groups, n).

        Args:
            missed: by loss, what `LossModel.missed` returns.
        """
        rows = len(predicted)
        main, *others = _LOSSES_OF[metric]
        expected = {loss: np.mean(kinds[loss], axis=0) for loss in (main, *others)}
        by_row = expected[main].mean(axis=0)
        # Variance of the mean loss from chance in the rows of the window.
        error, single = missed.get(main, (0.0, 0.0))
        variance = max(self.losses[main].dispersion * float((by_row**2).sum()) / rows**2, single / rows)
        value = _value_of(metric, predicted, {loss: found.mean(axis=0) for loss, found in expected.items()})
        groups = [
            _value_of(metric, predicted, {loss: found[k] for loss, found in expected.items()})
            for k in range(len(expected[main]))
        ]
        by_kind = [
            _value_of(metric, predicted, {loss: kinds[loss][kind].mean(axis=0) for loss in expected})
            for kind in range(len(kinds[main]))
        ]
        slope, limits = 1.0, (0.0, math.inf)
        if metric == "rmse":
            slope = 0.5 / value if value > 0 else 0.0
        elif metric == "r2":
            spread = _label_variance(predicted, by_row, expected["signed"].mean(axis=0))
            slope, limits = (1 / spread if spread > 0 else math.nan), (-math.inf, 1.0)
        jackknife = math.sqrt(max(0, len(groups) - 1) * float(np.var(groups))) * _FEW_GROUPS
        disagreement = (max(by_kind) - min(by_kind)) / 2
        # Both are about chance in the reference, so the larger one counts.
        chance = max(jackknife, slope * error)
        reference_error = math.hypot(chance, disagreement, self.between_blocks.get(metric, 0.0))
        return new_estimate(metric, value, rows, slope * math.sqrt(variance), reference_error, limits)

    def _between_blocks(
        self,
        metrics: Sequence[str],
        predicted: Array,
        actual: Array,
        left_out: Mapping[str, Array],
        times: NDArray[np.generic],
    ) -> dict[str, float]:
        blocks = min(_BLOCKS, len(actual) // _LEAST_BLOCK_ROWS)
        if blocks < 2:
            return {}
        pieces: dict[str, list[tuple[float, float]]] = {metric: [] for metric in metrics}
        for rows in np.array_split(np.argsort(times, kind="stable"), blocks):
            # Every row is predicted by the model that was fitted without it.
            expected = {loss: (found[rows][None, :],) for loss, found in left_out.items()}
            for metric in metrics:
                estimate = self._estimate(metric, predicted[rows], expected, {})
                gap = score(metric, actual[rows], predicted[rows]) - estimate.value
                if estimate.window_error > 0 and math.isfinite(gap):
                    pieces[metric].append((gap, estimate.window_error))
        return {metric: spread_beyond_chance(found) for metric, found in pieces.items()}


def _fit_groups(trend: Array, codes: Codes, bins: int, target: Array, *, signed: bool) -> tuple[LossModel, Array]:
    """Return the models, and for each row the prediction of the model that was fitted without it."""
    group = np.random.default_rng(0).permutation(len(target)) % _GROUPS
    trends, plain = [], []
    left_out = np.empty(len(target))
    for k in range(_GROUPS):
        rest, own = group != k, group == k
        trends.append(TrendAndTrees.fit(trend[rest], codes[rest], bins, target[rest], k))
        plain.append(fit_trees(codes[rest], bins, target[rest], trees=_TREES, seed=k))
        left_out[own] = (trends[k].predict(trend[own], codes[own]) + plain[k].predict(codes[own])) / 2
    if not signed:
        left_out = np.maximum(left_out, 0.0)
    scale = 1.0 if signed else float(np.mean(left_out**2))
    dispersion = float(np.mean((target - left_out) ** 2)) / scale if scale > 0 else 0.0
    return LossModel(tuple(trends), dispersion, tuple(plain), _missed_by_cell(codes, bins, target - left_out)), left_out


def _missed_by_cell(codes: Codes, bins: int, missed: Array) -> Array:
    """Return the number of rows, the mean and the variance by input and cell, shape (inputs, 3, cells).

    A cell without rows, such as that of values above all others, is described by the nearest one with rows. The
    variance of few rows is moved towards that of all.
    """
    found = np.empty((codes.shape[1], 3, bins))
    for column, code in enumerate(codes.T):
        rows = np.bincount(code, minlength=bins).astype(np.float64)
        some = np.flatnonzero(rows)
        nearest = some[np.abs(np.arange(bins)[:, None] - some).argmin(axis=1)]
        means = np.bincount(code, weights=missed, minlength=bins) / np.maximum(rows, 1.0)
        squares = np.bincount(code, weights=(missed - means[code]) ** 2, minlength=bins)
        variances = (squares + _FEW_ROWS * float(missed.var())) / (np.maximum(rows - 1, 0.0) + _FEW_ROWS)
        found[column] = np.stack([rows, means, variances])[:, nearest]
    return found


def _value_of(metric: str, predicted: Array, expected: Mapping[str, Array]) -> float:
    """Return a metric from the expected losses of each row, shape (n,)."""
    loss = float(expected[_LOSSES_OF[metric][0]].mean())
    if metric == "rmse":
        return math.sqrt(loss)
    if metric == "r2":
        spread = _label_variance(predicted, expected["squared"], expected["signed"])
        return 1 - loss / spread if spread > 0 else math.nan
    return loss


def _label_variance(predicted: Array, squared: Array, signed: Array) -> float:
    """Return the variance of labels from predictions and the expected squared and signed errors of each row.

    With e = predicted - actual, E[actual] = predicted - E[e] and E[actual²] = predicted² - 2 predicted E[e] + E[e²].
    """
    centre = float((predicted - signed).mean())
    shifted = predicted - centre
    return max(0.0, float((shifted**2 - 2 * shifted * signed + squared).mean()))


def _names(metrics: str | Sequence[str], available: Sequence[str]) -> list[str]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        get_metric(name, "regression")
        if name not in available:
            raise UsageError(
                f"{name} cannot be estimated by this model of losses.",
                help=f"Use one of: {', '.join(available)}."
                if name not in ESTIMATED
                else f"Fit the estimator with metrics=['{name}', …]; it has: {', '.join(available)}.",
            )
    return list(dict.fromkeys(names))


def _numbers(values: ArrayLike) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"Predictions and labels must be numbers: {error}.", help="Pass arrays of numbers.") from error


def _labelled(inputs: pl.DataFrame, predicted: ArrayLike, actual: ArrayLike) -> tuple[Array, Array, NDArray[np.bool_]]:
    values, labels = _numbers(predicted), _numbers(actual)
    if values.shape != (inputs.height,) or labels.shape != values.shape:
        raise DataError(
            f"There are {inputs.height} rows of inputs, predictions of shape {values.shape} and labels of shape "
            f"{labels.shape}.",
            help="Pass one prediction and one label for each row.",
        )
    kept = np.isfinite(values) & np.isfinite(labels)
    return values[kept], labels[kept], kept


def _with_prediction(inputs: pl.DataFrame, predicted: Array) -> pl.DataFrame:
    import polars as pl

    return inputs.with_columns(pl.Series(_PREDICTION, predicted))
