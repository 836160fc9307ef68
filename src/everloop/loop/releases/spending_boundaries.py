"""Group-sequential boundaries from an error-spending function, for any number of looks at any times.

A spending function says how much of the permitted error may have been used once a fraction of the planned information
has arrived. Each look gets the boundary that uses exactly what has become available since the last look. The boundary
needs only the looks so far, so neither their number nor their times have to be planned.

Information is measured in multiples of the planned amount. Above 1, a reserve of the error is spent slowly, so a
test that has not decided by then can still do so.

Sources: Lan and DeMets, "Discrete sequential boundaries for clinical trials", Biometrika 70 (1983); for the recursion,
Armitage, McPherson and Rowe, JRSS A 132 (1969). The tests check it against published boundaries.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from everloop.errors import UsageError
from everloop.monitoring.measures.tail_probabilities import normal_quantile, normal_tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Array = np.ndarray[Any, Any]

Shape = Literal["late", "even"]
"""`late`: little error at first, most of it near the planned end (O'Brien and Fleming). `even`: about as much for each
part of the information (Pocock)."""

RESERVE = 0.2
"""Share of the error that is kept for information beyond the planned amount."""
_NO_ERROR = 1e-12
"""A look that has less error than this to spend cannot decide anything."""
_REACH = 6.0
"""The density of the test statistic is followed this many standard deviations down."""
_CELLS_PER_DEVIATION = 8.0
_MOST_CELLS = 400


def spent_error(fraction: float, error: float, shape: Shape, reserve: float = RESERVE) -> float:
    """Return the error that may have been spent once a fraction of the planned information has arrived.

    Args:
        fraction: information over planned information; may be above 1.
        error: the whole one-sided error, which is never exceeded.
        shape: how the error is spread over the information.
        reserve: the share of the error that is kept for fractions above 1.
    """
    if fraction <= 0:
        return 0.0
    planned = error * (1.0 - reserve)
    if fraction >= 1:
        return planned + error * reserve * (1.0 - 1.0 / fraction)
    if shape == "late":
        return 2.0 * normal_tail(normal_quantile(planned / 2) / math.sqrt(fraction))
    return planned * math.log(1.0 + (math.e - 1.0) * fraction)


def boundaries(fractions: Sequence[float], error: float, shape: Shape, reserve: float = RESERVE) -> tuple[float, ...]:
    """Return the upper boundary of a standard normal test statistic at each look.

    Under the null hypothesis, the probability that the statistic exceeds its boundary at any look is at most `error`.

    Args:
        fractions: information at each look over the planned information, rising.
        error: the whole one-sided error.
        shape: how the error is spread over the information.
        reserve: the share of the error that is kept for fractions above 1.

    Returns:
        One boundary per look, in standard deviations. Infinity if a look has no error to spend yet.

    Raises:
        UsageError: the fractions do not rise, or the error is not between 0 and 0.5.
    """
    if not 0 < error < 0.5:
        raise UsageError(f"The error of a test must be between 0 and 0.5, not {error}.", help="For example: error=0.05")
    if any(later <= earlier for earlier, later in zip((0.0, *fractions), fractions, strict=False)):
        raise UsageError(f"The information of the looks must rise from above 0, not {list(fractions)[:10]}.")
    known = tuple(fractions)
    # Each look builds on the one before it, which is remembered.
    return tuple(_after(known[: look + 1], error, shape, reserve).boundary for look in range(len(known)))


class _State(NamedTuple):
    """The test after a look: the boundary, the error spent, and the density of the motion below its boundary."""

    boundary: float
    used: float
    density: tuple[Array, Array]


@lru_cache(maxsize=4096)
def _after(fractions: tuple[float, ...], error: float, shape: Shape, reserve: float) -> _State:
    fraction = fractions[-1]
    before = _after(fractions[:-1], error, shape, reserve) if len(fractions) > 1 else None
    used = before.used if before is not None else 0.0
    density = _step(before.density, fractions[-2], fraction) if before is not None else _step(None, 0.0, fraction)
    available = spent_error(fraction, error, shape, reserve) - used
    if available < _NO_ERROR:
        return _State(math.inf, used, density)
    limit = _upper_quantile(density, available)
    return _State(limit / math.sqrt(fraction), used + available, _cut(density, limit))


def _step(density: tuple[Array, Array] | None, earlier: float, fraction: float) -> tuple[Array, Array]:
    """Return the density of the Brownian motion at `fraction` on a grid, given the density below the last boundary.

    A density is a pair: the grid, evenly spaced, and the values on it.
    """
    import numpy as np

    end = math.sqrt(fraction)
    if density is None:
        grid = np.linspace(-_REACH * end, _REACH * end, 1 + 2 * int(_REACH * 40))
        return grid, np.exp(-0.5 * grid * grid / fraction) / math.sqrt(2 * math.pi * fraction)
    before, values = density
    deviation = math.sqrt(fraction - earlier)
    highest = before[-1] + _REACH * deviation
    cells = int(min(_MOST_CELLS, max(160, _CELLS_PER_DEVIATION * (highest + _REACH * end) / deviation)))
    grid = np.linspace(-_REACH * end, highest, cells + 1)
    gaps = (grid[:, None] - before[None, :]) / deviation
    kernel = np.exp(-0.5 * gaps * gaps) / (deviation * math.sqrt(2 * math.pi))
    weights = values * _trapezoid(before)
    return grid, kernel @ weights


def _trapezoid(grid: Array) -> Array:
    import numpy as np

    weights = np.full(len(grid), grid[1] - grid[0])
    weights[[0, -1]] *= 0.5
    return weights


def _upper_quantile(density: tuple[Array, Array], mass: float) -> float:
    """Return the point above which the density has a mass; linear between the points of the grid, on a log scale."""
    import numpy as np

    grid, values = density
    step = grid[1] - grid[0]
    pieces = 0.5 * step * (values[1:] + values[:-1])
    above = np.concatenate((np.cumsum(pieces[::-1])[::-1], [0.0]))
    at = int(np.searchsorted(-above, -mass))
    if at == 0:
        return float(grid[0])
    high, low = above[at - 1], max(above[at], 1e-300)
    share = math.log(high / mass) / math.log(high / low)
    return float(grid[at - 1] + share * step)


def _cut(density: tuple[Array, Array], limit: float) -> tuple[Array, Array]:
    """Return the density below a limit, on a grid that ends exactly there."""
    import numpy as np

    grid, values = density
    cells = max(160, min(_MOST_CELLS, int((limit - grid[0]) / (grid[1] - grid[0])) + 1))
    inner = np.linspace(grid[0], limit, cells + 1)
    # The logarithm of the density is nearly quadratic, so it is interpolated with far less error than the density.
    return inner, np.exp(np.interp(inner, grid, np.log(np.maximum(values, 1e-300))))


__all__ = ["RESERVE", "Shape", "boundaries", "spent_error"]
