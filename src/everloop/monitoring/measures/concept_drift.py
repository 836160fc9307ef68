"""Test whether labels still follow predictions as they did on the reference, at any number of looks.

Held-out rows of the reference show, in bins of the prediction, how far labels are from predictions on average. New rows
should be as far. A test that is repeated every hour would find a difference sooner or later; this one bets against the
hypothesis instead, and the chance that its wealth (the e-value) ever exceeds 1/a is at most a (Ville's inequality).

Signals lie between −1 and 1. For a binary label the signal is y − p. For a number there are two: 2u − 1 (labels are
higher or lower) and 2·|2u − 1| − 1 (errors are larger or smaller), where u is the rank of y − ŷ among the residuals of
the reference in the same bin. A signal s whose mean is at most 0 gives the wealth exp(λ Σs − ψ(λ) Σs²) with
ψ(λ) = −log(1 − λ) − λ. Wealth is averaged over λ, over directions (all labels move, high against low predictions, one
bin alone) and over the look at which the change began, so old quiet weeks do not hide a change.

Only counts, sums and sums of squares per bin are needed, so the labels of hours, hosts and workers can be added.

Sources: X. Fan, I. Grama, Q. Liu (2015), Exponential inequalities for martingales, Electron. J. Probab. 20, for the
wealth; S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon (2021), Ann. Statist. 49, and J. Shin, A. Ramdas, A. Rinaldo
(2024), E-detectors, for mixtures over λ and over starts; H. Scheffé (1953) for the allowance for the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.tail_probabilities import chi_square_tail, normal_quantile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everloop.records import Json

Array = npt.NDArray[np.float64]
ConceptTask = Literal["binary", "regression"]

ALPHA = 0.01
TOLERANCE = 0.02
"""A mean signal of up to this is never drift. For a binary label: two percentage points."""

_BINS = 8
_LEAST_ROWS = 50
_ROWS_PER_BIN = 100
_RESIDUAL_QUANTILES = 64
_RECENT_STARTS = 8
_BEST_STARTS = 16
_BETS = 0.75 * 0.5 ** np.arange(9)
_COSTS = -np.log1p(-_BETS) - _BETS


@dataclass(frozen=True, slots=True)
class ConceptReference:
    """How labels follow predictions on the reference.

    Attributes:
        edges: inner borders of the bins of the prediction, rising; one fewer than there are bins.
        residuals: for `regression`, quantiles of label minus prediction by bin, in the unit of the label.
        expected: mean signal by signal and bin.
        errors: standard errors of `expected`.
    """

    task: ConceptTask
    rows: int
    edges: tuple[float, ...]
    residuals: tuple[tuple[float, ...], ...]
    expected: tuple[tuple[float, ...], ...]
    errors: tuple[tuple[float, ...], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The bins of the prediction, in words."""
        if not self.edges:
            return ("all predictions",)
        inner = [f"({low:.4g}, {high:.4g}]" for low, high in pairwise(self.edges)]
        return (f"≤ {self.edges[0]:.4g}", *inner, f"> {self.edges[-1]:.4g}")

    @property
    def scale(self) -> float:
        """Signals less their means lie within plus and minus this."""
        return 1 + max(abs(mean) for means in self.expected for mean in means)

    def to_json(self) -> dict[str, Json]:
        return {
            "task": self.task,
            "rows": self.rows,
            "edges": list(self.edges),
            "residuals": [list(row) for row in self.residuals],
            "expected": [list(row) for row in self.expected],
            "errors": [list(row) for row in self.errors],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ConceptReference:
        def rows(name: str) -> tuple[tuple[float, ...], ...]:
            return tuple(tuple(map(float, row)) for row in data[name])

        edges = tuple(map(float, data["edges"]))
        return cls(data["task"], int(data["rows"]), edges, rows("residuals"), rows("expected"), rows("errors"))


@dataclass(frozen=True, slots=True)
class ConceptSums:
    """What a window's labels say, in a few numbers. Sums with the same reference can be added.

    Attributes:
        counts: labelled rows by bin.
        sums: Σ of the signals less their expected means, divided by `scale`, by signal and bin.
        squares: Σ of the squares of the same.
    """

    counts: tuple[int, ...]
    sums: tuple[tuple[float, ...], ...]
    squares: tuple[tuple[float, ...], ...]

    @property
    def rows(self) -> int:
        return sum(self.counts)

    def __add__(self, other: ConceptSums) -> ConceptSums:
        if len(self.counts) != len(other.counts) or len(self.sums) != len(other.sums):
            raise UsageError(
                "Sums of labels with different bins cannot be added.", help="Compute both with the same reference."
            )
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return ConceptSums(counts, _added(self.sums, other.sums), _added(self.squares, other.squares))

    def to_json(self) -> dict[str, Json]:
        return {
            "counts": list(self.counts),
            "sums": [list(row) for row in self.sums],
            "squares": [list(row) for row in self.squares],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> ConceptSums:
        sums, squares = (tuple(tuple(map(float, row)) for row in data[name]) for name in ("sums", "squares"))
        return cls(tuple(map(int, data["counts"])), sums, squares)


def concept_reference(task: ConceptTask, predicted: Array, actual: Array) -> ConceptReference:
    """Learn from held-out rows how labels follow predictions. Rows with a value that is not finite are left out.

    Args:
        task: `binary` (labels are 0 or 1, predictions are probabilities) or `regression`.
        predicted: shape (n,), for rows that the model was not fitted on.
        actual: labels, shape (n,).

    Raises:
        EmptySampleError: fewer than 50 rows have both.
        UsageError: unknown task, or values outside the range of the task.
    """
    if task not in ("binary", "regression"):
        raise UsageError(f"There is no task '{task}'.", help="Use one of: binary, regression")
    p, y = _checked(task, predicted, actual)
    if len(p) < _LEAST_ROWS:
        raise EmptySampleError(
            f"The reference of a concept drift test needs at least {_LEAST_ROWS} labelled rows, not {len(p)}.",
            help="Pass more held-out rows with labels.",
        )
    bins = max(1, min(_BINS, len(p) // _ROWS_PER_BIN))
    inner = np.quantile(p, np.arange(1, bins) / bins, method="lower") if bins > 1 else np.zeros(0)
    # A border at the largest prediction would leave the last bin without rows.
    edges = np.unique(inner[inner < p.max()])
    bin_of = np.searchsorted(edges, p, side="left")
    residuals: list[tuple[float, ...]] = []
    if task == "regression":
        steps = (np.arange(_RESIDUAL_QUANTILES) + 0.5) / _RESIDUAL_QUANTILES
        residuals = [tuple(np.quantile((y - p)[bin_of == k], steps).tolist()) for k in range(len(edges) + 1)]
    signals = _signals(task, residuals, bin_of, p, y)
    counts = np.bincount(bin_of, minlength=len(edges) + 1)
    means = np.stack([np.bincount(bin_of, signal, len(counts)) / counts for signal in signals])
    spreads = np.stack([np.bincount(bin_of, signal**2, len(counts)) / counts for signal in signals]) - means**2
    # Where all labels of a bin agree, their variance is 0, but the mean is not certain: hence one more row.
    errors = np.sqrt((np.maximum(spreads, 0.0) + 1 / counts) / counts)
    return ConceptReference(task, len(p), tuple(edges.tolist()), tuple(residuals), _tuples(means), _tuples(errors))


def sum_labels(reference: ConceptReference, predicted: Array, actual: Array) -> ConceptSums:
    """Sum up the labels of a window. Rows with a value that is not finite are left out; there may be none.

    Args:
        predicted: shape (n,), as in the reference.
        actual: labels, shape (n,).

    Raises:
        UsageError: values outside the range of the task.
    """
    p, y = _checked(reference.task, predicted, actual)
    bin_of = np.searchsorted(np.asarray(reference.edges), p, side="left")
    width = len(reference.edges) + 1
    expected = np.asarray(reference.expected)
    signals = _signals(reference.task, reference.residuals, bin_of, p, y)
    gaps = [(signal - mean[bin_of]) / reference.scale for signal, mean in zip(signals, expected, strict=True)]
    return ConceptSums(
        tuple(np.bincount(bin_of, minlength=width).tolist()),
        _tuples(np.stack([np.bincount(bin_of, gap, width) for gap in gaps])),
        _tuples(np.stack([np.bincount(bin_of, gap**2, width) for gap in gaps])),
    )


@dataclass(frozen=True, slots=True)
class ConceptTest:
    """A sequential test. `look` returns the test after one more window; `drifted` stays true once it is.

    The chance that it ever becomes true although nothing has changed is at most `alpha`. Half of it is spent on the
    uncertainty of the reference. Each labelled row must be passed once.

    Attributes:
        looks: windows so far.
        starts: the looks at which a change may have begun, with the sums since then.
        peak: the largest logarithm of the e-value so far.
    """

    reference: ConceptReference
    alpha: float = ALPHA
    tolerance: float = TOLERANCE
    looks: int = 0
    starts: tuple[tuple[int, ConceptSums], ...] = ()
    log_e_value: float = 0.0
    peak: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and 0 <= self.tolerance < 1):
            raise UsageError(
                f"alpha must be between 0 and 1 and tolerance from 0 to below 1, not {self.alpha} and {self.tolerance}."
            )

    @property
    def drifted(self) -> bool:
        return self.peak >= math.log(2 / self.alpha)

    @property
    def p_value(self) -> float:
        """Bound on the chance of so large an e-value at any look if nothing has changed."""
        return min(1.0, self.alpha / 2 + math.exp(-self.peak))

    def look(self, window: ConceptSums) -> ConceptTest:
        """Return the test after one more window. A window without labels changes nothing."""
        if window.rows == 0:
            return self
        look = self.looks + 1
        starts = [*((start, sums + window) for start, sums in self.starts), (look, window)]
        weighted = _log_wealth(self.reference, [sums for _, sums in starts], self.alpha, self.tolerance)
        # The weights 1/(i·(i + 1)) of all possible starts add up to 1.
        weighted -= np.log([start * (start + 1.0) for start, _ in starts])
        total = _log_sum(weighted)
        # Forgetting a start can only lower the e-value, so the error stays bounded.
        older = np.argsort(-weighted[:-_RECENT_STARTS], kind="stable")[:_BEST_STARTS]
        kept = [starts[index] for index in sorted(older)] + starts[-_RECENT_STARTS:]
        return ConceptTest(self.reference, self.alpha, self.tolerance, look, tuple(kept), total, max(self.peak, total))

    def likely_start(self) -> tuple[int, ConceptSums] | None:
        """Return the look since which the evidence is strongest, with the sums since then; None before the first."""
        if not self.starts:
            return None
        wealth = _log_wealth(self.reference, [sums for _, sums in self.starts], self.alpha, self.tolerance)
        wealth -= np.log([start * (start + 1.0) for start, _ in self.starts])
        return self.starts[int(np.argmax(wealth))]

    def gaps(self) -> list[dict[str, Json]]:
        """Return how labels differ from what is expected since the likely start: one entry for each bin with rows.

        `gap` is the mean of the first signal less its expected mean. For a binary label it is in units of probability.
        """
        found = self.likely_start()
        if found is None:
            return []
        sums, scale = found[1], self.reference.scale
        return [
            {"prediction": label, "rows": rows, "gap": total * scale / rows}
            for label, rows, total in zip(self.reference.labels, sums.counts, sums.sums[0], strict=True)
            if rows
        ]

    def to_json(self) -> dict[str, Json]:
        """Return the state without the reference."""
        return {
            "alpha": self.alpha,
            "tolerance": self.tolerance,
            "looks": self.looks,
            "starts": [[start, sums.to_json()] for start, sums in self.starts],
            "log_e_value": self.log_e_value,
            "peak": self.peak,
        }

    @classmethod
    def from_json(cls, reference: ConceptReference, data: Mapping[str, Json]) -> ConceptTest:
        starts = tuple((int(start), ConceptSums.from_json(sums)) for start, sums in data["starts"])
        numbers = (float(data["log_e_value"]), float(data["peak"]))
        return cls(reference, float(data["alpha"]), float(data["tolerance"]), int(data["looks"]), starts, *numbers)


def _checked(task: ConceptTask, predicted: Array, actual: Array) -> tuple[Array, Array]:
    p, y = np.asarray(predicted, dtype=np.float64), np.asarray(actual, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise UsageError(
            f"Predictions and labels must be two columns of the same length, not {p.shape} and {y.shape}.",
            help="Join the labels to their predictions first.",
        )
    known = np.isfinite(p) & np.isfinite(y)
    p, y = p[known], y[known]
    if task == "binary":
        if len(p) and (p.min() < 0 or p.max() > 1):
            wrong = p[(p < 0) | (p > 1)][0]
            raise UsageError(f"A probability must be between 0 and 1, not {wrong:g}.", help="Pass probabilities.")
        if not np.isin(y, (0.0, 1.0)).all():
            wrong = y[~np.isin(y, (0.0, 1.0))][0]
            raise UsageError(f"A binary label must be 0 or 1, not {wrong:g}.", help="Use the task 'regression'.")
    return p, y


def _signals(
    task: ConceptTask,
    residuals: tuple[tuple[float, ...], ...] | list[tuple[float, ...]],
    bin_of: npt.NDArray[np.intp],
    p: Array,
    y: Array,
) -> list[Array]:
    if task == "binary":
        return [y - p]
    ranks = np.empty(len(p))
    for k, quantiles in enumerate(residuals):
        rows = bin_of == k
        gaps = (y - p)[rows]
        left, right = (np.searchsorted(np.asarray(quantiles), gaps, side=side) for side in ("left", "right"))
        ranks[rows] = (left + right) / (2 * len(quantiles))
    centred = 2 * ranks - 1
    return [centred, 2 * np.abs(centred) - 1]


def _log_wealth(reference: ConceptReference, all_sums: list[ConceptSums], alpha: float, tolerance: float) -> Array:
    """Return the logarithm of the e-value of each of several sums, shape (sums,)."""
    counts = np.asarray([sums.counts for sums in all_sums], dtype=np.float64)[:, None, :]
    sums = np.asarray([item.sums for item in all_sums])
    squares = np.asarray([item.squares for item in all_sums])
    errors = np.asarray(reference.errors) / reference.scale
    slack = tolerance / reference.scale
    directions, weights = _directions(counts.shape[-1])
    moved = sums @ directions.T
    # How much of the sums the errors of the reference may explain, whatever the mix of predictions: by the bound for
    # all combinations of bins (Scheffé), or by that for each bin (Bonferroni), which is smaller for single bins.
    uncertain = counts * errors
    all_bins = math.sqrt(_chi_square_quantile(alpha / 4, errors.size)) * np.sqrt(uncertain**2 @ (directions**2).T)
    each_bin = normal_quantile(alpha / 8 / errors.size) * (uncertain @ np.abs(directions).T)
    allowed = np.minimum(all_bins, each_bin) + slack * (counts @ np.abs(directions).T)
    spread = squares @ (directions**2).T + slack**2 * (counts @ (directions**2).T)
    skew = 2 * slack * (sums @ (directions * np.abs(directions)).T)
    gains = np.stack([moved - allowed, -moved - allowed], axis=-1) / (1 + slack)
    risks = np.stack([spread - skew, spread + skew], axis=-1) / (1 + slack) ** 2
    exponents = gains[..., None] * _BETS - risks[..., None] * _COSTS
    exponents += np.log(weights / (2 * len(reference.expected) * len(_BETS)))[:, None, None]
    flat = exponents.reshape(len(all_sums), -1)
    largest = flat.max(axis=1)
    return np.asarray(largest + np.log(np.exp(flat - largest[:, None]).sum(axis=1)))


def _directions(bins: int) -> tuple[Array, Array]:
    """Return weights of the bins by direction, shape (directions, bins), and the prior of each direction."""
    if bins == 1:
        return np.ones((1, 1)), np.ones(1)
    directions = np.vstack([np.ones(bins), np.linspace(-1, 1, bins), np.eye(bins)])
    return directions, np.array([0.35, 0.35, *[0.3 / bins] * bins])


@lru_cache(maxsize=64)
def _chi_square_quantile(tail: float, freedom: int) -> float:
    low, high = 0.0, 10.0 * freedom + 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, freedom) > tail else (low, middle)
    return high


def _log_sum(values: Array) -> float:
    largest = float(values.max())
    return largest + math.log(float(np.exp(values - largest).sum()))


def _added(one: tuple[tuple[float, ...], ...], other: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(a + b for a, b in zip(x, y, strict=True)) for x, y in zip(one, other, strict=True))


def _tuples(rows: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows.tolist())
