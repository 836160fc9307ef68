"""Tests of a window against earlier windows, which tolerate the variation that those windows show.

Shares of rows are compared by an exact conditional test of two counts, with both counts divided by the dispersion that
the earlier windows show beyond chance (a quasi-likelihood, as in McCullagh and Nelder, Generalized Linear Models,
section 4.5). Amounts, such as rows and latencies, are compared on a logarithmic scale with the t distribution of a new
observation, and so are shares that vary more than by chance. All are wide if there are few earlier windows.

If neighbouring windows resemble each other, they show less of the variation than their number suggests. The variance of
a first-order autoregressive series corrects for that (Bayley and Hammersley, J. R. Statist. Soc. Suppl. 8, 1946).

SciPy is not needed. The tests check the tail probabilities against scipy.special and scipy.stats.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everloop.errors import UsageError
from everloop.monitoring.measures.tail_probabilities import normal_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_WINDOWS = 3
"""With fewer earlier windows, their variation cannot be estimated."""

_TINY = 1e-300
_LEAST_DISPERSION = 0.05
_OVERDISPERSED = 1.5
"""From this dispersion on, shares are compared on a logarithmic scale as well, because they vary by factors."""
_MOST_CORRELATION = 0.95


@dataclass(frozen=True, slots=True)
class ShareTest:
    """The result of comparing a share with earlier ones.

    Attributes:
        p_value: one-sided: the probability of a share as large as this one if nothing has changed.
        expected: the earlier share, 0 to 1.
        dispersion: variance of the earlier counts, as a multiple of that of a Poisson variable.
    """

    p_value: float
    expected: float
    dispersion: float


def share_increase(count: int, rows: int, earlier: Sequence[tuple[float, float]]) -> ShareTest:
    """Test whether a share of rows has increased.

    Args:
        count: rows that have the property, in this window.
        rows: all rows of this window.
        earlier: `(count, rows)` of each earlier window, in the order of time. With fewer than three windows, all rows
            are treated as independent, because the variation between windows is not known.

    Raises:
        UsageError: a count is below 0 or above its number of rows.
    """
    for hits, total in ((count, rows), *earlier):
        if not 0 <= hits <= total:
            raise UsageError(f"{hits} of {total} rows is not a share.", help="Pass a count from 0 to the rows.")
    windows = [(hits, total) for hits, total in earlier if total > 0]
    before, size = sum(hits for hits, _ in windows), sum(total for _, total in windows)
    if not windows or rows == 0:
        return ShareTest(1.0, before / size if size else 0.0, 1.0)
    share = before / size
    # A binomial count varies less than a Poisson one.
    dispersion = max(_LEAST_DISPERSION, 1 - share)
    freedom = math.inf
    if len(windows) >= LEAST_WINDOWS:
        freedom = len(windows) - 1
        if share > 0:
            pearson = sum((hits - total * share) ** 2 / (total * share) for hits, total in windows)
            dispersion = max(dispersion, pearson / freedom)
    if count / rows <= share:
        return ShareTest(1.0, share, dispersion)
    # Given the sum of two Poisson counts, the second is binomial.
    tail = beta_cdf(count / dispersion, before / dispersion + 1, rows / (rows + size))
    if math.isfinite(freedom):
        tail = student_tail(normal_quantile(min(max(tail, _TINY), 1 - 1e-12)), freedom)
        if dispersion > _OVERDISPERSED:
            logs = [math.log((hits + 0.5) / (total + 1)) for hits, total in windows]
            now = math.log((count + 0.5) / (rows + 1))
            tail = max(tail, _new_observation(now, logs, least_spread=1 / math.sqrt(count + 0.5))[0])
    return ShareTest(tail, share, dispersion)


@dataclass(frozen=True, slots=True)
class LevelTest:
    """The result of comparing an amount with earlier ones: p-values of an increase and a decrease, both one-sided.

    Attributes:
        expected: the geometric mean of the earlier amounts.
        spread: standard deviation of the logarithms of the earlier amounts.
    """

    increase: float
    decrease: float
    expected: float
    spread: float

    @property
    def two_sided(self) -> float:
        return min(1.0, 2 * min(self.increase, self.decrease))


def level_shift(amount: float, earlier: Sequence[float], *, least_spread: float) -> LevelTest | None:
    """Test whether a positive amount differs from earlier ones; None with fewer than three earlier windows.

    Args:
        amount: above 0, in any unit.
        earlier: amounts of earlier windows in the order of time, above 0, in the same unit.
        least_spread: smallest standard deviation of the logarithms that is assumed.
    """
    if len(earlier) < LEAST_WINDOWS:
        return None
    logs = [math.log(max(value, _TINY)) for value in earlier]
    increase, mean, spread = _new_observation(math.log(max(amount, _TINY)), logs, least_spread=least_spread)
    return LevelTest(increase, 1 - increase, math.exp(mean), spread)


def _new_observation(value: float, earlier: Sequence[float], *, least_spread: float) -> tuple[float, float, float]:
    """Return the one-sided p-value of a new observation, and the mean and standard deviation of the earlier ones."""
    number = len(earlier)
    mean = math.fsum(earlier) / number
    squares = math.fsum((one - mean) ** 2 for one in earlier)
    products = math.fsum((one - mean) * (other - mean) for one, other in itertools.pairwise(earlier))
    # Amounts that vary less than is assumed do not show whether neighbours resemble each other.
    correlation = products / squares if squares > number * least_spread**2 else -1.0
    # The estimate is too low by about this much (Kendall, Biometrika 41, 1954).
    correlation = min(_MOST_CORRELATION, max(0.0, correlation + (1 + 3 * correlation) / number))
    effective = max(2.0, number * (1 - correlation) / (1 + correlation))
    variance = squares / number / (1 - 1 / effective)
    spread = max(least_spread, math.sqrt(variance))
    distance = (value - mean) / (spread * math.sqrt(1 + 1 / effective))
    return student_tail(distance, effective - 1), mean, spread


def binomial_tail(count: int, rows: int, share: float) -> float:
    """Return P(X >= count) for a binomial variable of `rows` trials with the probability `share`."""
    if count <= 0:
        return 1.0
    return beta_cdf(count, rows - count + 1, share)


def student_tail(t: float, freedom: float) -> float:
    """Return P(T > t) for a t distribution with `freedom` degrees of freedom."""
    square = t * t
    # Of the two forms, the one whose last argument is not close to 1 is exact.
    if square < freedom:
        tail = 0.5 * (1 - beta_cdf(0.5, freedom / 2, square / (freedom + square)))
    else:
        tail = 0.5 * beta_cdf(freedom / 2, 0.5, freedom / (freedom + square))
    return tail if t >= 0 else 1 - tail


def beta_cdf(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b).

    Source: Press et al., Numerical Recipes, section 6.4 (Lentz's continued fraction).

    Raises:
        UsageError: `a` or `b` is below 0, or `x` is not between 0 and 1.
    """
    if a < 0 or b < 0 or not 0 <= x <= 1:
        raise UsageError(f"The beta distribution is not defined for a={a}, b={b}, x={x}.", help="Check the counts.")
    if x in (0.0, 1.0) or a == 0 or b == 0:
        return 1.0 if x == 1.0 or a == 0 else 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(log_front) if log_front > -745 else 0.0
    if x < (a + 1) / (a + b + 2):
        return min(1.0, front * _beta_fraction(a, b, x) / a)
    return max(0.0, 1 - front * _beta_fraction(b, a, 1 - x) / b)


def _beta_fraction(a: float, b: float, x: float) -> float:
    # The fraction converges within a few times the square root of the larger argument.
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, 200 + 10 * int(math.sqrt(max(a, b)))):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + factor * d
            d = 1 / (d if abs(d) > _TINY else _TINY)
            c = 1 + factor / c
            c = c if abs(c) > _TINY else _TINY
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return value
