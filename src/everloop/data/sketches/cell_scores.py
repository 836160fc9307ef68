"""Score the cells of a column, so that columns of any kind can be correlated.

The score of a cell is its mean normal score under the reference: E[Z | Z in the cell] if the cells, in their order,
divided a standard normal variable in the reference's shares. So the scores of the reference have mean 0, no value is
an outlier, and correlations are rank correlations (van der Waerden). Missing values score 0. Categories are scored in
the order of `CategoryBins`, most frequent first. This order is arbitrary but always the same: it compares frequent with
rare categories and is exact for features with two values.

Scores are whole multiples of 1/256, so that sums of them are exact and do not depend on the machine.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everloop.data.sketches.column_sketches import Sketch

STEPS = 256
"""Scores are whole multiples of 1/256."""


def cell_scores(reference: Sketch) -> tuple[int, ...]:
    """Return the score of each cell in steps of 1/256, from the counts of the reference; 0 for missing values.

    An empty cell counts as half a row. The mean normal score of the cell between the quantiles a and b is
    (φ(a) − φ(b)) / (Φ(b) − Φ(a)).
    """
    normal = NormalDist()
    counts = [max(count, 0.5) for count in reference.counts[1:]]
    total = sum(counts)
    scores = [0]
    below, density = 0.0, 0.0
    for index, count in enumerate(counts):
        upto = below + count
        last = index == len(counts) - 1 or upto >= total
        density_above = 0.0 if last else normal.pdf(normal.inv_cdf(upto / total))
        scores.append(math.floor((density - density_above) / (count / total) * STEPS + 0.5))
        below, density = upto, density_above
    return tuple(scores)
