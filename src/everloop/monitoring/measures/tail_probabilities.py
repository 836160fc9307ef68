"""Compute tail probabilities without SciPy, which serving and monitoring do not need otherwise.

The relative error is about 1e-12; the tests check it against scipy.special.
"""

from __future__ import annotations

import math

from everloop.errors import UsageError

_TINY = 1e-300


def gamma_tail(shape: float, x: float) -> float:
    """Return P(X > x) for a gamma variable of this shape and scale 1.

    This is the regularised upper incomplete gamma function.
    Source: Press et al., Numerical Recipes, section 6.2 (series below shape + 1, Lentz's continued fraction above).

    Raises:
        UsageError: `shape` is not above 0.
    """
    if not shape > 0:
        raise UsageError(
            f"The shape of a gamma distribution must be above 0, not {shape}.", help="Pass a larger shape."
        )
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    scale = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    # Both expansions converge within a few times the square root of the larger argument.
    steps = 100 + 20 * int(math.sqrt(max(shape, x)))
    if x < shape + 1:
        term = total = 1.0 / shape
        for step in range(1, steps):
            term *= x / (shape + step)
            total += term
            if term < total * 1e-16:
                break
        return min(1.0, max(0.0, 1.0 - total * scale))
    b = x + 1.0 - shape
    c = 1.0 / _TINY
    d = 1.0 / b
    value = d
    for step in range(1, steps):
        a = -step * (step - shape)
        b += 2.0
        d = a * d + b
        d = 1.0 / (d if abs(d) > _TINY else _TINY)
        c = b + a / c
        c = c if abs(c) > _TINY else _TINY
        factor = d * c
        value *= factor
        if abs(factor - 1.0) < 1e-16:
            break
    return min(1.0, max(0.0, scale * value))


def chi_square_tail(x: float, freedom: float) -> float:
    """Return P(X > x) for a chi-square variable with `freedom` degrees of freedom."""
    return gamma_tail(freedom / 2, x / 2)


def normal_tail(z: float) -> float:
    """Return P(Z > z) for a standard normal variable."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def normal_quantile(probability: float) -> float:
    """Return the z with P(Z > z) = `probability`, for 0 < probability < 1.

    Raises:
        UsageError: the probability is not between 0 and 1.
    """
    from statistics import NormalDist

    if not 0 < probability < 1:
        raise UsageError(
            f"A probability must be between 0 and 1, not {probability}.", help="Pass a value such as 0.05."
        )
    return -NormalDist().inv_cdf(probability)
