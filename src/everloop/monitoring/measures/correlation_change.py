"""Test which pairs of columns have changed their correlation, from the cross moments of two windows.

Each correlation r is transformed to atanh r, whose standard error is 1/√(rows − 3) for normal scores.
Source: R. A. Fisher (1921); T. W. Anderson, An Introduction to Multivariate Statistical Analysis (2003), section 4.2.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring.measures.tail_probabilities import normal_tail

if TYPE_CHECKING:
    from everloop.data.sketches.cross_moments import CrossMoments

_LEAST_ROWS = 10
_LARGEST = 0.999
"""Near 1, atanh amplifies the rounding of the scores."""


@dataclass(frozen=True, slots=True)
class CorrelationChange:
    """The correlation of two columns in the reference and in the window.

    Attributes:
        z: difference of the transformed correlations in standard errors. Positive if the correlation has grown.
        p_value: two-sided, for this pair alone. It treats rows as independent.
    """

    first: str
    second: str
    before: float
    now: float
    z: float
    p_value: float


def correlation_changes(reference: CrossMoments, live: CrossMoments) -> list[CorrelationChange]:
    """Return all pairs of columns, the one that has changed most surely first.

    Raises:
        EmptySampleError: one side has fewer than 10 rows.
        UsageError: the two have different columns or scores.
    """
    if (reference.names, reference.basis) != (live.names, live.basis):
        raise UsageError(
            "Only cross moments with the same columns and scores can be compared.",
            help="Compute both with the sketches of the same baseline.",
        )
    fewest = min(reference.rows, live.rows)
    if fewest < _LEAST_ROWS:
        raise EmptySampleError(
            f"Correlations need at least {_LEAST_ROWS} rows on both sides, not {fewest}.",
            help="Choose a longer window.",
        )
    before, now = reference.correlations(), live.correlations()
    gaps = np.arctanh(np.clip(now, -_LARGEST, _LARGEST)) - np.arctanh(np.clip(before, -_LARGEST, _LARGEST))
    scores = gaps / math.sqrt(1 / (reference.rows - 3) + 1 / (live.rows - 3))
    changes = [
        CorrelationChange(
            reference.names[i],
            reference.names[j],
            float(before[i, j]),
            float(now[i, j]),
            float(scores[i, j]),
            min(1.0, 2 * normal_tail(abs(float(scores[i, j])))),
        )
        for i, j in zip(*np.triu_indices(len(reference.names), 1), strict=True)
    ]
    return sorted(changes, key=lambda change: (-abs(change.z), change.first, change.second))
