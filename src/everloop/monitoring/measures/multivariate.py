"""Detect changes in many columns at once, from samples of rows: a domain classifier and PCA reconstruction.

`tell_apart` trains a classifier to tell the window from the reference, and reports its cross-validated area under the
ROC curve: 0.5 if the two are alike. It sees every change, also in how columns depend on each other, but costs a second.
`Reconstruction` projects rows on the principal components of the reference and reports how far the projections are from
the rows. It costs milliseconds and sees changes in correlation, but hardly those along the components.

Both need rows; use them for reports and for a closer look, not for every window.

Sources: D. Lopez-Paz, M. Oquab, Revisiting classifier two-sample tests, ICLR 2017; NannyML's data reconstruction, whose
encoding of categories (by their share in the reference) and share of variance (65 %) are used here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from everloop.data.sketches.bins import as_numbers, column_kind
from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.tail_probabilities import normal_quantile, normal_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

Array = npt.NDArray[np.float64]
ClassifierName = Literal["boosting", "logistic"]

SAMPLE_ROWS = 5_000
RECONSTRUCTION_ROWS = 20_000

_LEAST_ROWS = 30
_FOLDS = 5
_PAIRS_COUNTED_TWICE = 2
"""Factor of the variance of a cross-validated area. A chance likeness of two folds counts when the first is tested and
again when the second is, so the areas of the folds are not independent. Exact for linear classifiers."""
_CATEGORIES = 12
_MOST_FACTORS = 20
_LIMIT = 20.0
"""Standardised values are cut off here, so that one wrong row cannot decide."""


@dataclass(frozen=True, slots=True)
class DomainShift:
    """How well a classifier tells the window from the reference.

    Attributes:
        auc: cross-validated area under the ROC curve, 0 to 1; about 0.5 if the two are alike.
        low: lower end of the 95 % interval of `auc` (DeLong).
        high: upper end.
        p_value: chance of such an area or a larger one if the two are alike.
        contributions: by column, the most important first, how much the area shrinks if the column is shuffled.
        rows: rows used of the reference and of the window.
        classifier: what was trained.
    """

    auc: float
    low: float
    high: float
    p_value: float
    contributions: dict[str, float]
    rows: tuple[int, int]
    classifier: ClassifierName


def tell_apart(
    reference: pl.DataFrame,
    window: pl.DataFrame,
    columns: Sequence[str] | None = None,
    *,
    classifier: ClassifierName | None = None,
    rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> DomainShift:
    """Train classifiers on four fifths of samples of both frames, and test on the rest.

    Args:
        reference: one row per case.
        window: one row per case. A column that it does not have counts as missing in every row.
        columns: columns of the reference. Default: all that can be monitored.
        classifier: `boosting` needs scikit-learn; `logistic`, with products of pairs of numbers, needs only NumPy.
            Default: boosting if scikit-learn is installed.
        rows: rows sampled from each frame at most.
        seed: the same seed gives the same result.

    Raises:
        EmptySampleError: a frame has fewer than 30 rows.
        UsageError: no column can be used, or scikit-learn is missing for `boosting`.
    """
    from everloop.packages.time_budget import one_thread
    from everloop.training.intervals import delong_covariance

    names = _usable(reference, columns)
    chosen = _classifier(classifier)
    generator = np.random.Generator(np.random.PCG64(seed))
    before, now = _sample(reference, rows, generator), _sample(window, rows, generator)
    if chosen == "boosting":
        matrix, groups = _codes_of(before, now, names)
    else:
        matrix, groups = _indicators_of(before, now, names)
    domain = np.repeat([0.0, 1.0], [before.height, now.height])
    # Both classes are dealt out evenly to the folds.
    fold = np.concatenate([generator.permutation(size) % _FOLDS for size in (before.height, now.height)])
    areas, variances, null_variances = [], [], []
    losses = np.zeros(len(names))
    if chosen == "boosting":
        # `one_thread` limits only libraries that are loaded.
        import sklearn.ensemble  # noqa: F401
    # Samples are small, and on a busy machine the threads of a boosting library wait for each other.
    with one_thread():
        for index in range(_FOLDS):
            test = fold == index
            model = _fit(chosen, matrix[~test], domain[~test], seed)
            rest, truth = matrix[test], domain[test]
            area, variance = delong_covariance(truth, model.score(rest))
            areas.append(float(area[0]))
            variances.append(float(variance[0, 0]))
            ones, zeros = truth.sum(), (1 - truth).sum()
            null_variances.append(float((ones + zeros + 1) / (12 * ones * zeros)))
            order = generator.permutation(len(rest))
            for column in range(len(names)):
                mixed = rest.copy()
                mixed[:, groups == column] = rest[order][:, groups == column]
                losses[column] += (area[0] - delong_covariance(truth, model.score(mixed))[0][0]) / _FOLDS
    auc = float(np.mean(areas))
    margin = normal_quantile(0.025) * math.sqrt(_PAIRS_COUNTED_TWICE * sum(variances)) / _FOLDS
    ranked = sorted(zip(names, losses.tolist(), strict=True), key=lambda item: (-item[1], item[0]))
    return DomainShift(
        auc=auc,
        low=max(0.0, auc - margin),
        high=min(1.0, auc + margin),
        p_value=normal_tail((auc - 0.5) * _FOLDS / math.sqrt(_PAIRS_COUNTED_TWICE * sum(null_variances))),
        contributions=dict(ranked),
        rows=(before.height, now.height),
        classifier=chosen,
    )


@dataclass(frozen=True, slots=True)
class ReconstructionShift:
    """How far rows of a window are from their projections on the components of the reference.

    Attributes:
        error: mean distance between row and projection, in standardised units.
        expected: the same for rows of the reference that the components were not fitted on.
        z: difference in standard errors. Negative if rows are closer than expected, as if columns depend more on each
            other.
        p_value: two-sided; it treats rows as independent.
        contributions: by column, the most changed first, the mean squared error now less that expected.
    """

    error: float
    expected: float
    z: float
    p_value: float
    contributions: dict[str, float]
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """Principal components of a reference. Fit it once with `fit_reconstruction`, then measure windows."""

    names: tuple[str, ...]
    shares: dict[str, dict[str, float]]
    centres: Array
    scales: Array
    components: Array
    expected: float
    deviation: float
    expected_squares: Array
    rows: int

    def measure(self, window: pl.DataFrame, *, seed: int = 0) -> ReconstructionShift:
        """Measure a window, or a sample of 20,000 of its rows.

        Raises:
            EmptySampleError: the window has fewer than 30 rows.
        """
        sample = _sample(window, RECONSTRUCTION_ROWS, np.random.Generator(np.random.PCG64(seed)))
        residuals = self._residuals(_numbers_of(sample, self.names, self.shares))
        distances = np.sqrt((residuals**2).sum(axis=1))
        error = float(distances.mean())
        standard_error = self.deviation * math.sqrt(1 / self.rows + 1 / len(distances))
        gap = error - self.expected
        # If the reference is reproduced exactly, any difference beyond rounding is a change.
        z = gap / standard_error if standard_error > 1e-9 else (0.0 if abs(gap) < 1e-6 else math.copysign(40.0, gap))
        changes = (residuals**2).mean(axis=0) - self.expected_squares
        ranked = sorted(zip(self.names, changes.tolist(), strict=True), key=lambda item: (-abs(item[1]), item[0]))
        p_value = min(1.0, 2 * normal_tail(abs(z)))
        return ReconstructionShift(error, self.expected, z, p_value, dict(ranked), len(distances))

    def _residuals(self, values: Array) -> Array:
        standardised = _standardised(values, self.centres, self.scales)
        return np.asarray(standardised - standardised @ self.components.T @ self.components)


def fit_reconstruction(
    reference: pl.DataFrame, columns: Sequence[str] | None = None, *, explained: float = 0.65, seed: int = 0
) -> Reconstruction:
    """Fit principal components on half of the reference, and measure the other half.

    Args:
        reference: one row per case; at most 20,000 are sampled.
        columns: columns of the reference. Default: all that can be monitored.
        explained: the share of the variance that the components must have, between 0 and 1.
        seed: the same seed gives the same components.

    Raises:
        EmptySampleError: the reference has fewer than 60 rows.
        UsageError: no column can be used, or `explained` is not between 0 and 1.
    """
    if not 0 < explained < 1:
        raise UsageError(f"The explained share must be between 0 and 1, not {explained}.", help="Pass 0.65.")
    names = tuple(_usable(reference, columns))
    generator = np.random.Generator(np.random.PCG64(seed))
    sample = _sample(reference, RECONSTRUCTION_ROWS, generator, least=2 * _LEAST_ROWS)
    shares = {name: _category_shares(sample[name]) for name in names if column_kind(sample.schema[name]) != "numeric"}
    values = _numbers_of(sample, names, shares)
    fitted, rest = values[::2], values[1::2]
    known = np.isfinite(fitted)
    filled = np.where(known, fitted, 0.0)
    counts = np.maximum(known.sum(axis=0), 1)
    # Halving keeps sums of the largest floats finite.
    centres = 2 * (filled / 2 / counts).sum(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = np.sqrt((np.where(known, fitted - centres, 0.0) ** 2).sum(axis=0) / counts)
    scales = np.where(np.isfinite(scales) & (scales > 0), scales, 1.0)
    standardised = _standardised(fitted, centres, scales)
    _, singular, directions = np.linalg.svd(standardised - standardised.mean(axis=0), full_matrices=False)
    variances = np.cumsum(singular**2)
    most = len(names) - 1 if len(names) > 1 else 1
    used = int(np.searchsorted(variances, explained * variances[-1])) + 1 if variances[-1] > 0 else 1
    model = Reconstruction(
        names, shares, centres, scales, directions[: min(used, most)], 0.0, 0.0, np.zeros(len(names)), len(rest)
    )
    residuals = model._residuals(rest)
    distances = np.sqrt((residuals**2).sum(axis=1))
    return Reconstruction(
        names,
        shares,
        centres,
        scales,
        model.components,
        float(distances.mean()),
        float(distances.std(ddof=1)),
        (residuals**2).mean(axis=0),
        len(rest),
    )


class _Scorer(Protocol):
    def score(self, rows: Array) -> Array: ...


@dataclass(frozen=True, slots=True)
class _Boosted:
    model: object

    def score(self, rows: Array) -> Array:
        return np.asarray(self.model.decision_function(rows), dtype=np.float64)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class _Logistic:
    """Logistic regression with products of pairs of `factors`, fitted by Newton's method with a small penalty."""

    factors: npt.NDArray[np.intp]
    weights: Array

    @classmethod
    def fit(cls, rows: Array, truth: Array, factors: npt.NDArray[np.intp]) -> _Logistic:
        design = cls._design(rows, factors)
        penalty = np.full(design.shape[1], 3.0)
        penalty[0] = 1e-6
        weights = np.zeros(design.shape[1])
        for _ in range(8):
            chances = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
            curvature = np.maximum(chances * (1 - chances), 1e-6)
            hessian = (design * curvature[:, None]).T @ design + np.diag(penalty)
            weights = weights + np.linalg.solve(hessian, design.T @ (truth - chances) - penalty * weights)
        return cls(factors, weights)

    def score(self, rows: Array) -> Array:
        return np.asarray(self._design(rows, self.factors) @ self.weights)

    @staticmethod
    def _design(rows: Array, factors: npt.NDArray[np.intp]) -> Array:
        first, second = np.triu_indices(len(factors))
        products = rows[:, factors[first]] * rows[:, factors[second]]
        return np.hstack([np.ones((len(rows), 1)), rows, products])


def _classifier(asked: ClassifierName | None) -> ClassifierName:
    from importlib.util import find_spec

    installed = find_spec("sklearn") is not None
    if asked == "boosting" and not installed:
        raise UsageError(
            "The classifier 'boosting' needs scikit-learn.",
            help="Install it with: pip install 'everloop[ml]', or use 'logistic'.",
        )
    if asked not in (None, "boosting", "logistic"):
        raise UsageError(f"There is no classifier '{asked}'.", help="Use one of: boosting, logistic")
    return asked or ("boosting" if installed else "logistic")


def _fit(chosen: ClassifierName, rows: Array, truth: Array, seed: int) -> _Scorer:
    if chosen == "boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier

        model = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, min_samples_leaf=10, early_stopping=False, random_state=seed
        )
        return _Boosted(model.fit(rows, truth))
    # Only the ranks of numbers are multiplied: they come first in each group and are not 0/1.
    numeric = [index for index in range(rows.shape[1]) if not np.isin(rows[:, index], (0.0, 1.0)).all()]
    return _Logistic.fit(rows, truth, np.asarray(numeric[:_MOST_FACTORS], dtype=np.intp))


def _usable(reference: pl.DataFrame, columns: Sequence[str] | None) -> list[str]:
    names = list(columns) if columns is not None else reference.columns
    absent = [name for name in names if name not in reference.columns]
    if absent:
        raise UsageError(f"The reference has no column '{absent[0]}'.", help=f"Columns: {', '.join(reference.columns)}")
    usable = [name for name in names if column_kind(reference.schema[name]) is not None]
    if not usable:
        raise UsageError(
            "None of the columns can be monitored.", help="Pass columns with numbers, texts, categories or booleans."
        )
    return usable


def _sample(frame: pl.DataFrame, rows: int, generator: np.random.Generator, least: int = _LEAST_ROWS) -> pl.DataFrame:
    if frame.height < least:
        raise EmptySampleError(
            f"A comparison of many columns needs at least {least} rows, not {frame.height}.",
            help="Choose a longer window.",
        )
    # Also small frames are shuffled, since halves and folds take turns through the rows.
    return frame[generator.permutation(frame.height)[:rows]]


def _column(frame: pl.DataFrame, name: str, numeric: bool) -> pl.Series:
    """Return a column as numbers or texts; nulls if the frame does not have it, or not in a usable type."""
    import polars as pl

    if name not in frame.columns or column_kind(frame.schema[name]) is None:
        return pl.Series(name, [None], dtype=pl.Float64 if numeric else pl.String).new_from_index(0, frame.height)
    return as_numbers(frame[name]) if numeric else frame[name].cast(pl.String)


def _pooled(before: pl.DataFrame, now: pl.DataFrame, name: str) -> tuple[Array, bool]:
    """Return the column of both samples as numbers with NaN for missing, and whether these are codes of categories.

    Codes count from the most frequent category.
    """
    import polars as pl

    numeric = column_kind(before.schema[name]) == "numeric"
    values = pl.concat([_column(before, name, numeric).alias("x"), _column(now, name, numeric).alias("x")])
    if numeric:
        numbers = values.to_numpy().copy()
        numbers[~np.isfinite(numbers)] = np.nan
        return numbers, False
    ranked = values.drop_nulls().value_counts().sort(["count", "x"], descending=[True, False])["x"]
    codes = values.to_frame().join(ranked.to_frame().with_row_index("code"), on="x", how="left", maintain_order="left")
    return codes["code"].cast(pl.Float64).to_numpy().copy(), True


def _codes_of(before: pl.DataFrame, now: pl.DataFrame, names: Sequence[str]) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return ranks of the values, with missing ones below all others. Trees see no more in numbers than their ranks."""
    from everloop.training.intervals import mid_ranks

    columns = [_pooled(before, now, name)[0] for name in names]
    return np.stack([mid_ranks(np.nan_to_num(values, nan=-np.inf)) for values in columns], axis=1), np.arange(
        len(names)
    )


def _indicators_of(before: pl.DataFrame, now: pl.DataFrame, names: Sequence[str]) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return ranks of numbers and 0/1 of categories and missing values, and which column each belongs to."""
    from everloop.training.intervals import mid_ranks

    parts: list[Array] = []
    groups: list[int] = []
    for index, name in enumerate(names):
        values, categorical = _pooled(before, now, name)
        missing = np.isnan(values)
        found: list[Array] = []
        if categorical:
            found += [(values == code).astype(np.float64) for code in range(_CATEGORIES) if (values == code).any()]
        elif not missing.all():
            ranks = np.zeros(len(values))
            ranks[~missing] = mid_ranks(values[~missing]) / (~missing).sum() - 0.5
            found.append(ranks * math.sqrt(12))
        if missing.any() or not found:
            found.append(missing.astype(np.float64))
        parts += found
        groups += [index] * len(found)
    return np.stack(parts, axis=1), np.asarray(groups)


def _category_shares(values: pl.Series) -> dict[str, float]:
    import polars as pl

    counted = values.cast(pl.String).alias("x").drop_nulls().value_counts()
    return dict(zip(counted["x"].to_list(), (counted["count"] / max(1, len(values))).to_list(), strict=True))


def _numbers_of(frame: pl.DataFrame, names: Sequence[str], shares: dict[str, dict[str, float]]) -> Array:
    """Return the columns as numbers, shape (rows, columns): categories by their share, missing values as NaN."""
    import polars as pl

    found = []
    for name in names:
        values = _column(frame, name, name not in shares)
        if name in shares:
            values = values.replace_strict(shares[name], default=0.0, return_dtype=pl.Float64).set(
                values.is_null(), None
            )
        found.append(values.to_numpy())
    return np.stack(found, axis=1)


def _standardised(values: Array, centres: Array, scales: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        standardised = (values - centres) / scales
    return np.clip(np.nan_to_num(standardised, nan=0.0, posinf=_LIMIT, neginf=-_LIMIT), -_LIMIT, _LIMIT)
