"""How much a measurement varies between blocks of time, beyond what chance explains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_BLOCKS = 6


def spread_beyond_chance(pieces: Sequence[tuple[float, float]]) -> float:
    """Return the standard deviation of the true values behind (estimate, standard error) pairs; 0 for fewer than six.

    Source: R. DerSimonian, N. Laird, Meta-analysis in clinical trials (1986): moments of Cochran's Q.
    """
    if len(pieces) < _LEAST_BLOCKS:
        return 0.0
    weights = [1 / (error * error) for _, error in pieces]
    total = sum(weights)
    centre = sum(weight * value for weight, (value, _) in zip(weights, pieces, strict=True)) / total
    q = sum(weight * (value - centre) ** 2 for weight, (value, _) in zip(weights, pieces, strict=True))
    excess = q - (len(pieces) - 1)
    return math.sqrt(max(0.0, excess / (total - sum(weight * weight for weight in weights) / total)))
