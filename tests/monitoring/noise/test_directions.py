"""Directions: their variance is what they claim, a shift shows in its own direction, and no edge case breaks them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import optimize, stats

from everloop.data.sketches.bins import Bins, CategoryBins, NumericBins
from everloop.data.sketches.column_sketches import Sketch
from everloop.monitoring.noise.directions import (
    LOCATION,
    MISSING,
    NEW,
    OUTSIDE,
    REST,
    SCALE,
    Array,
    Directions,
    _orthonormal_scores,
    _tilt,
    _tilted,
    cube_root_score,
)

NUMERIC = np.array([0.02, 0.0005, *[0.979 / 20] * 20, 0.0005])
CATEGORICAL = np.array([0.02, 0.5, 0.3, 0.1, 0.05, 0.02, 0.009, 0.001, 0.0])


def bins_for(cells: int, numeric: bool) -> Bins:
    if numeric:
        return NumericBins(tuple(map(float, range(cells - 2))))
    return CategoryBins(tuple(f"c{index}" for index in range(cells - 2)))


def directions(shares: Array, rows: float, *, numeric: bool = True, reference_rows: int = 10_000_000) -> Directions:
    counts = tuple(np.round(np.asarray(shares) * reference_rows).astype(int).tolist())
    return Directions("x", Sketch(bins_for(len(counts), numeric), counts), rows)


def normal_cells(cells: int, mean: float = 0.0, deviation: float = 1.0) -> Array:
    """Shares of the cells missing, below, `cells` bins of equal share, above."""
    edges = stats.norm.ppf(np.arange(1, cells) / cells)
    inside = np.diff(stats.norm.cdf(edges, mean, deviation), prepend=0.0, append=1.0)
    return np.array([0.0, 0.0, *inside, 0.0])


@pytest.mark.parametrize("numeric", [True, False])
@pytest.mark.parametrize("rows", [300, 1000, 30_000])
def test_chance_has_mean_zero_and_the_stated_variance(numeric: bool, rows: int) -> None:
    shares = NUMERIC if numeric else CATEGORICAL
    item = directions(shares, rows, numeric=numeric)
    counts = np.random.default_rng(1).multinomial(rows, shares / shares.sum(), size=8000).astype(float)
    found = item.measure(counts)
    z = found.values / np.sqrt(found.variances)
    parts = {0: [0], 1: [1, len(shares) - 1]} if numeric else {0: [0], 1: [len(shares) - 1]}
    for index, name in enumerate(item.names):
        group = (
            parts.get(index - 2 if numeric else index, [])
            if name in (MISSING, OUTSIDE, NEW)
            else [item_cell(item, name)]
            if not numeric
            else []
        )
        expected = rows * shares[group].sum() if group else rows
        assert abs(z[:, index].mean()) < 0.2, name
        if expected >= 10:
            assert z[:, index].var() == pytest.approx(1.0, abs=0.1), name
        else:
            # Rare counts vary less than the arcsine says, never more.
            assert z[:, index].var() < 1.1, name
    assert found.chi_square.mean() == pytest.approx(item.freedom, rel=0.03)
    assert found.chi_square.var() == pytest.approx(2 * item.freedom, rel=0.12)
    # All categories have directions of their own, so there is no rest.
    assert (found.rows > 0.9 * rows).all() if numeric else not found.rows.any()


def item_cell(item: Directions, name: str) -> int:
    return int(name[1:]) + 1


@pytest.mark.parametrize("rows", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("numeric", [True, False])
def test_small_windows_do_not_vary_more_than_they_claim(numeric: bool, rows: int) -> None:
    shares = NUMERIC if numeric else CATEGORICAL
    counts = np.random.default_rng(2).multinomial(rows, shares / shares.sum(), size=20_000).astype(float)
    found = directions(shares, rows, numeric=numeric).measure(counts)
    z = found.values / np.sqrt(found.variances)
    assert (z.var(axis=0) < 1.1).all()
    # Far out they are no worse than a slightly heavier tail; the estimate without steadying rows reached 11.
    assert np.abs(z).max() < 6.5


def test_a_shifted_normal_feature_has_its_shift_as_location_and_nothing_else() -> None:
    scores = _orthonormal_scores(normal_cells(200))
    for shift in (0.05, 0.25, 0.5):
        shares = normal_cells(200, shift)
        theta = _tilt((shares @ scores)[None], scores, normal_cells(200))
        assert theta[0] == pytest.approx([shift, 0.0], abs=0.02 * shift)
    item = directions(normal_cells(50), 1e6)
    (values,) = item.measure(normal_cells(50, 0.25)[None] * 1e6).values
    found = dict(zip(item.names, values, strict=True))
    assert found.pop(LOCATION) == pytest.approx(0.25, rel=0.03)
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=0.005)


def test_a_wider_feature_moves_in_scale_only() -> None:
    item = directions(normal_cells(50), 1e6)
    wider, narrower = (
        dict(zip(item.names, item.measure(normal_cells(50, 0.0, deviation)[None] * 1e6).values[0], strict=True))
        for deviation in (1.1, 0.9)
    )
    # p · exp(θ (z² − 1)/√2) is a normal density with variance 1 / (1 − √2 θ).
    assert wider[SCALE] == pytest.approx((1 - 1 / 1.1**2) / np.sqrt(2), rel=0.1)
    assert narrower[SCALE] == pytest.approx((1 - 1 / 0.9**2) / np.sqrt(2), rel=0.1)
    assert [wider[LOCATION], narrower[LOCATION]] == pytest.approx([0.0, 0.0], abs=0.003)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    # With fewer or rarer cells, the parameters of a large shift are rough; the rest shows such a shift as well.
    st.lists(st.floats(0.2, 1.0), min_size=6, max_size=12),
    st.tuples(st.floats(-0.8, 0.8), st.floats(-0.3, 0.3)),
)
def test_tilting_reproduces_means_as_an_optimizer_does(weights: list[float], truth: tuple[float, float]) -> None:
    shares = np.array([0.0, 0.0, *weights, 0.0])
    shares /= shares.sum()
    scores = _orthonormal_scores(shares)
    if scores.shape[1] < 2:
        return
    means = _tilted(np.array([truth]), scores, shares) @ scores

    def unlikely(theta: Array) -> float:
        exponents = scores @ theta
        return float(np.log((shares * np.exp(exponents)).sum()) - theta @ means[0])

    best = optimize.minimize(unlikely, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    theta = _tilt(means, scores, shares)
    tilted = _tilted(theta, scores, shares)
    assert tilted.sum() == pytest.approx(1.0)
    assert best == pytest.approx(truth, abs=1e-3)
    # A few steps of Newton's method are enough for shifts that leave any doubt.
    assert theta[0] == pytest.approx(best, abs=0.05)
    assert tilted @ scores == pytest.approx(means, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=25))
def test_scores_are_orthonormal_under_the_shares(weights: list[float]) -> None:
    shares = np.array([0.0, *weights])
    if shares.sum() == 0:
        return
    shares /= shares.sum()
    scores = _orthonormal_scores(shares)
    assert scores.shape[1] <= 2
    assert shares @ scores == pytest.approx(np.zeros(scores.shape[1]), abs=1e-9)
    assert (scores * shares[:, None]).T @ scores == pytest.approx(np.eye(scores.shape[1]), abs=1e-8)


@pytest.mark.parametrize("freedom", [1, 3, 10, 40])
def test_cube_roots_follow_the_chi_square_distribution(freedom: int) -> None:
    for probability in (0.5, 0.05, 1e-3, 1e-6):
        score = float(cube_root_score(np.array(stats.chi2.isf(probability, freedom) / freedom), freedom))
        # Far out the approximation is a little too calm, most of all with one degree of freedom.
        assert -np.log(probability) * 0.895 < -stats.norm.logsf(score) < -np.log(probability) * 1.03


def test_the_rest_is_the_chi_square_of_scipy_where_nothing_has_moved() -> None:
    rest = np.array([0.02, 0.014, 0.01, 0.006])
    shares = np.array([0.05, *[0.9 / 8] * 8, *rest, 0.0])
    item = directions(shares, 1000, numeric=False)
    counts = np.array([60.0, *[111] * 8, 25, 12, 10, 5, 0])
    expected = stats.chisquare(counts[9:13], rest / rest.sum() * counts[9:13].sum())
    assert item.measure(counts[None]).chi_square[0] == pytest.approx(expected.statistic, rel=1e-3)
    assert item.freedom == 3


def test_rare_cells_are_counted_together() -> None:
    # The first eight have directions of their own. Of 94 others, some are frequent enough to stand alone.
    shares = np.array([0.0, *[0.1] * 8, *[0.01] * 10, *[0.1 / 84] * 84, 0.0])
    assert directions(shares, 1000, numeric=False).freedom == 10
    assert directions(shares, 100_000, numeric=False).freedom == 93
    assert directions(shares, 10, numeric=False).freedom == 0
    # A reference with few rows does not know the shares of rare cells, however large the windows are.
    assert directions(shares, 1e9, numeric=False, reference_rows=1000).freedom == 10


def test_missing_new_and_frequent_categories_have_directions() -> None:
    item = directions(CATEGORICAL, 1000, numeric=False)
    assert item.names == (MISSING, NEW, "c0", "c1", "c2", "c3", "c4", "c5", "c6")
    counts = np.array([20.0, 350, 300, 100, 50, 20, 9, 1, 150])
    found = dict(zip(item.names, item.measure(counts[None]).values[0], strict=True))
    assert max(found, key=lambda name: abs(found[name])) == NEW
    assert found["c0"] < -0.2
    assert found["c1"] == pytest.approx(0.0, abs=0.01)


def test_of_two_categories_one_is_enough() -> None:
    assert directions(np.array([0.0, 0.7, 0.3, 0.0]), 100, numeric=False).names == (MISSING, NEW, "c0")
    assert directions(np.array([0.0, 1.0, 0.0]), 100, numeric=False).names == (MISSING, NEW, "c0")


def test_categories_may_be_called_like_directions() -> None:
    sketch = Sketch(CategoryBins(("rest", "missing", "correlation", "blue")), (0, 40, 30, 20, 10, 0))
    item = Directions("x", sketch, 100)
    assert item.names == (MISSING, NEW, "'rest'", "'missing'", "'correlation'", "blue")
    assert REST not in item.names


@pytest.mark.parametrize(
    ("counts", "numeric"),
    [
        ((0, 0, 100, 0), True),  # constant
        ((100, 0, 0, 0), True),  # all missing
        ((0, 0, 60, 40, 0), True),  # two values
        ((0, 1, 0), False),  # one row
        ((100, 0), False),  # no category at all
        ((0, 100, 0), False),  # one category
        ((0, 10**9, 10**8, 0), False),
    ],
)
def test_degenerate_features_measure_finite_numbers(counts: tuple[int, ...], numeric: bool) -> None:
    sketch = Sketch(bins_for(len(counts), numeric), counts)
    for typical in (1.0, 1e8):
        item = Directions("x", sketch, typical)
        windows = np.concatenate([np.eye(len(counts)) * rows for rows in (0, 1, 100, 10**8)])
        windows = np.concatenate([windows, np.array([counts], dtype=float)])
        found = item.measure(windows)
        assert np.isfinite(found.values).all()
        assert np.isfinite(found.chi_square).all()
        assert (found.variances > 0).all()
        assert (np.abs(found.values[-1]) <= 1.6 * np.sqrt(found.variances[-1])).all()
        nothing = item.measure(np.zeros((1, len(counts))))
        assert (nothing.values == 0).all()
        assert np.isinf(nothing.variances).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 25).flatmap(
        lambda cells: st.tuples(
            st.lists(st.integers(0, 10**6), min_size=cells + 2, max_size=cells + 2),
            st.lists(st.integers(0, 10**6), min_size=cells + 2, max_size=cells + 2),
        )
    ),
    st.booleans(),
    st.floats(1, 1e9),
)
def test_any_counts_measure_finite_numbers(pair: tuple[list[int], list[int]], numeric: bool, typical: float) -> None:
    reference, window = pair
    if numeric and len(reference) < 4:
        return
    item = Directions("x", Sketch(bins_for(len(reference), numeric), tuple(reference)), typical)
    found = item.measure(np.array([window, reference], dtype=float))
    for numbers in (found.values, found.chi_square, found.misfit, found.rows):
        assert np.isfinite(numbers).all()
    assert not np.isnan(found.variances).any()


def test_windows_are_measured_one_by_one() -> None:
    item = directions(NUMERIC, 500)
    counts = np.random.default_rng(4).multinomial(500, NUMERIC / NUMERIC.sum(), size=9).astype(float)
    together = item.measure(counts)
    for index in range(9):
        alone = item.measure(counts[index : index + 1])
        assert alone.values[0] == pytest.approx(together.values[index], rel=1e-9, abs=1e-12)
        assert alone.chi_square[0] == pytest.approx(together.chi_square[index], rel=1e-9)


def moved_counts(
    generator: np.random.Generator, distribution: stats.rv_continuous, edges: Array, level: Array
) -> Array:
    """Windows of 2,000 rows whose values all move by the level; the cells are between the edges."""
    below = distribution.cdf(edges - level[:, None])
    shares = np.diff(below, axis=1, prepend=0.0, append=1.0)
    return generator.multinomial(2000, np.concatenate([np.zeros((len(level), 1)), shares], axis=1)).astype(float)


def test_the_usual_movements_of_heavy_tails_are_no_rest_but_other_changes_are() -> None:
    generator = np.random.default_rng(4)
    tails = stats.t(3, scale=3**-0.5)
    edges = tails.ppf(np.concatenate([[1e-5], np.arange(1, 20) / 20, [1 - 1e-5]]))
    blocks = moved_counts(generator, tails, edges, 0.3 * generator.normal(size=60))
    item = Directions("x", Sketch(NumericBins(tuple(edges)), tuple(blocks.sum(axis=0).astype(int).tolist())), 2000)
    later = moved_counts(generator, tails, edges, 0.3 * generator.normal(size=400))
    unlearned = (item.measure(later).chi_square / item.freedom).mean()
    item.learn_response(blocks)
    found, seen = item.measure(later), item.measure(blocks, seen=True)
    ratio = found.chi_square / (item.freedom + found.rows * found.misfit)
    assert unlearned > 2
    assert ratio.mean() == pytest.approx(1, abs=0.12)
    assert (seen.chi_square / (item.freedom + seen.rows * seen.misfit)).mean() == pytest.approx(1, abs=0.12)
    # Two humps, of the same mean, are not a movement.
    humps = (moved_counts(generator, tails, edges, np.full(20, gap)) for gap in (-0.8, 0.8))
    mixed = np.concatenate([generator.binomial(part.astype(int), 0.5)[None] for part in humps]).sum(axis=0)
    other = item.measure(mixed.astype(float))
    assert (other.chi_square / (item.freedom + other.rows * other.misfit)).min() > 2


def test_chance_movements_of_a_steady_feature_are_not_learned() -> None:
    generator = np.random.default_rng(5)
    blocks = generator.multinomial(2000, NUMERIC / NUMERIC.sum(), size=60).astype(float)
    item = directions(NUMERIC, 2000)
    before = item.measure(blocks)
    item.learn_response(blocks)
    assert item.measure(blocks).chi_square == pytest.approx(before.chi_square)


def test_rows_beyond_the_range_are_expected_if_the_location_is_beyond_its_own() -> None:
    generator = np.random.default_rng(6)
    sharp = stats.expon()
    edges = np.concatenate([[-0.3], sharp.ppf(np.arange(1, 20) / 20), [20.0]])
    blocks = moved_counts(generator, sharp, edges, generator.uniform(-0.29, 0.3, 60))
    item = Directions("x", Sketch(NumericBins(tuple(edges)), tuple(blocks.sum(axis=0).astype(int).tolist())), 2000)
    item.learn_response(blocks)
    index = item.names.index(OUTSIDE)
    moved = item.measure(moved_counts(generator, sharp, edges, np.full(50, -0.33)))
    assert np.abs(moved.values[:, index] / np.sqrt(moved.variances[:, index])).mean() < 4
    # A hundred rows far below, while the others are where they were, are as surprising as ever.
    spoiled = moved_counts(generator, sharp, edges, np.zeros(50))
    spoiled[:, 1] += 100
    found = item.measure(spoiled)
    assert (found.values[:, index] / np.sqrt(found.variances[:, index])).min() > 6


def test_a_feature_that_ends_abruptly_may_wander_a_little_beyond_its_range() -> None:
    generator = np.random.default_rng(7)
    flat = stats.uniform(0, 1)
    levels = generator.normal(0, 0.07, 60)
    values = np.concatenate([generator.random(2000) + level for level in levels])
    edges = np.quantile(values, np.arange(21) / 20)
    blocks = moved_counts(generator, flat, edges, levels)
    item = Directions("x", Sketch(NumericBins(tuple(edges)), tuple(blocks.sum(axis=0).astype(int).tolist())), 2000)
    item.learn_response(blocks)
    # Chance in the location of the block closest to the end hides that this one is a little further.
    later = item.measure(moved_counts(generator, flat, edges, np.full(200, levels.max() + 0.01)))
    z = later.values / np.sqrt(later.variances)
    assert later.values[:, item.names.index(OUTSIDE)].mean() > 0.1
    for name in (OUTSIDE, SCALE):
        assert np.abs(z[:, item.names.index(name)]).max() < 4, name
    assert (later.chi_square / (item.freedom + later.rows * later.misfit)).mean() < 3
    # Rows beyond the range while the others are in its middle are as surprising as ever.
    spoiled = moved_counts(generator, flat, edges, np.zeros(50))
    spoiled[:, -1] += 40
    found = item.measure(spoiled)
    assert (found.values / np.sqrt(found.variances))[:, item.names.index(OUTSIDE)].min() > 4
