from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from scipy import stats

from everloop.data.sketches.bins import NumericBins, choose_bins
from everloop.data.sketches.cell_scores import STEPS, cell_scores
from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.data.sketches.pair_correlations import correlate_blocks


def test_scores_are_means_of_the_normal_distribution_in_the_cells() -> None:
    scores = np.array(cell_scores(Sketch(NumericBins((0.0, 1.0, 2.0, 3.0)), (9, 5, 20, 40, 30, 5)))) / STEPS
    borders = stats.norm.ppf(np.cumsum([0, 0.05, 0.2, 0.4, 0.3, 0.05]).clip(0, 1))
    expected = [stats.truncnorm.mean(low, high) for low, high in itertools.pairwise(borders)]
    assert scores[0] == 0
    assert scores[1:] == pytest.approx(expected, abs=1 / STEPS)


def test_correlations_of_scores_are_those_of_ranks_whatever_the_margins() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 20_000).T
    frame = pl.DataFrame({"x": x, "y": np.exp(y), "c": np.where(x + generator.normal(size=len(x)) > 0.3, "yes", "no")})
    reference = sketch_frame(frame, choose_bins(frame, frame.columns)[0])
    block = np.zeros(frame.height, dtype=np.int64)
    found = np.tanh(correlate_blocks(frame, reference, frame.columns, block, 1).correlations()[0])
    assert found[0] == pytest.approx(0.6, abs=0.02)
    # Two categories score as any two numbers.
    assert abs(found[1]) == pytest.approx(abs(np.corrcoef(frame["c"] == "yes", x)[0, 1]), abs=0.02)
