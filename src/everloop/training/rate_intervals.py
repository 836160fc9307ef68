"""Confidence intervals of rates and of differences between rates.

Sources: Wilson, JASA 22 (1927); Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Statistical
Science 16 (2001); Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
Medicine 17 (1998).
"""

from __future__ import annotations

import numpy as np

from everloop.training.bootstrap_levels import normal_quantile

LEVEL = 0.95
_SHORT = 50
"""Samples with at most this many rows have fewer modified ends; see `poisson_bound`."""


def wilson(successes: float, rows: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a rate. It is valid for few rows and for rates near 0 and 1."""
    if rows <= 0:
        return float("nan"), float("nan")
    z, rate = normal_quantile(level), successes / rows
    middle = (rate + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * float(np.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)))
    # For rates of 0 and 1 an end of the interval is exactly 0 or 1, which rounding would miss.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    return low, 1.0 if successes >= rows else min(1.0, middle + half)


def poisson_bound(successes: float, rows: float, level: float) -> float:
    """Return the modified lower end of Wilson's interval for one to three successes, otherwise 1.

    Wilson's own covers rates of about 0.18 / rows with a probability of only 0.84 at 95 %. The modified end is the rate
    at which a Poisson variable reaches this count with the probability 1 - level. Source: Brown, Cai and DasGupta,
    section 4.1.1.
    """
    count = round(successes)
    if abs(successes - count) > 1e-6 * max(1.0, rows) or not 1 <= count <= (3 if rows > _SHORT else 2):
        return 1.0
    low, high = 0.0, float(count)
    for _ in range(60):
        middle = (low + high) / 2
        below, term = 0.0, float(np.exp(-middle))
        for k in range(count):
            below += term
            term *= middle / (k + 1)
        low, high = (middle, high) if 1 - below < 1 - level else (low, middle)
    return low / rows


def newcombe(
    hits: float, rows: float, other_hits: float, other_rows: float, *, level: float = LEVEL
) -> tuple[float, float]:
    """Return the interval of the difference of two independent rates; NaN if one of them has no rows.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
    17 (1998), method 10.
    """
    if rows <= 0 or other_rows <= 0:
        return float("nan"), float("nan")
    rate, other = hits / rows, other_hits / other_rows
    low, high = wilson(hits, rows, level=level)
    other_low, other_high = wilson(other_hits, other_rows, level=level)
    gap = rate - other
    return gap - float(np.hypot(rate - low, other_high - other)), gap + float(np.hypot(high - rate, other - other_low))
