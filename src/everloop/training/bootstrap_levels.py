"""Confidence intervals from bootstrap replicates: BCa levels for a metric, Student's interval for a difference."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from everloop.training.metrics import Statistic

Array = NDArray[np.float64]

NO_SPREAD = 1e-12
"""Replicates that differ by no more than this differ by rounding only."""
_GROUPS = 40
"""The acceleration is estimated by leaving out each of this many groups of rows."""


def accelerations(statistics: Sequence[Statistic], rows: int, seed: int) -> Array:
    """Return the acceleration of each statistic's BCa interval, from a grouped jackknife; 0 if it is undefined."""
    groups = min(rows, _GROUPS)
    if groups < 3:
        return np.zeros(len(statistics))
    group = np.random.default_rng(seed).permutation(rows) % groups
    weights = [(group != k).astype(np.float64) for k in range(groups)]
    found = []
    for statistic in statistics:
        values = np.array([statistic(one) for one in weights])
        centred = values.mean() - values
        squares = float((centred**2).sum())
        cubes = float((centred**3).sum())
        found.append(cubes / (6 * squares**1.5) if np.isfinite(squares) and squares > 1e-300 else 0.0)
    return np.array(found)


def corrected_levels(
    value: float, replicates: Array, rows: int, acceleration: float, level: float
) -> tuple[float, float]:
    """Return the two quantiles of the replicates that bound the interval.

    These are the BCa levels, which correct for bias and skewness (Efron, "Better bootstrap confidence intervals", JASA
    82, 1987), with Student's quantile times sqrt(n / (n - 1)) instead of the normal one, because the bootstrap
    distribution of a small sample is too narrow (Hesterberg, "What teachers should know about the bootstrap", The
    American Statistician 69, 2015, section 5.3).
    """
    normal = NormalDist()
    below = float((replicates < value).mean() + 0.5 * (replicates == value).mean())
    bias = normal.inv_cdf(min(max(below, 0.5 / len(replicates)), 1 - 0.5 / len(replicates)))
    z = student_quantile(level, max(rows - 1, 1)) * float(np.sqrt(rows / max(rows - 1, 1)))
    levels = []
    for end in (-z, z):
        shifted = bias + end
        scale = 1 - acceleration * shifted
        levels.append(normal.cdf(bias + shifted / scale) if scale > 0 else normal.cdf(float(np.sign(shifted)) * 8))
    return levels[0], levels[1]


def student_interval(value: float, replicates: Array, level: float, rows: int) -> tuple[float, float, float]:
    """Return the ends and the standard error of a symmetric interval, for a difference of two models on the same rows.

    It is Student's quantile times the standard error of the replicates. Most of the skewness of a metric is the same
    for both models, and BCa intervals of such differences are too short: `benchmarks/intervals.py` measures both.

    Args:
        value: the difference on the sample itself.
        replicates: differences in resamples; NaN where it is undefined.
        level: confidence level.
        rows: independent rows that limit the precision, such as those of the rarest class.
    """
    defined = replicates[~np.isnan(replicates)]
    # If the metric is undefined in most resamples, there is no valid interval.
    if len(defined) < max(2, len(replicates) / 2):
        return float("nan"), float("nan"), float("nan")
    error = float(defined.std(ddof=1))
    if np.ptp(defined) <= NO_SPREAD * max(1.0, abs(value)):
        return value, value, error
    reach = student_quantile(level, max(rows - 1, 1)) * error
    return value - reach, value + reach, error


def normal_quantile(level: float) -> float:
    """Return the number of standard errors on each side of a two-sided interval."""
    return NormalDist().inv_cdf((1 + level) / 2)


def student_quantile(level: float, degrees: float) -> float:
    """Return Student's counterpart of `normal_quantile`, by the expansion of Cornish and Fisher.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.7.5. At 95 %, with five or more degrees of
    freedom, the error is below 0.005.
    """
    x, v = normal_quantile(level), degrees
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / v ** (k + 1) for k, term in enumerate(terms))
