import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st
from scipy import special, stats
from scipy.spatial import distance as scipy_distance

from everloop.data.sketches.bins import CategoryBins, NumericBins, choose_bins
from everloop.data.sketches.column_sketches import Sketch, sketch_frame
from everloop.errors import EmptySampleError, UsageError
from everloop.monitoring import (
    chi_square_test,
    distance_between,
    hellinger,
    jensen_shannon,
    ks,
    psi,
    total_variation,
    wasserstein,
)
from everloop.monitoring.measures.distances import DISTANCES, Array, distance_function, live_shares, smoothed_shares

counts = st.lists(st.integers(1, 1000), min_size=3, max_size=12)


def shares(values: list[int]) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(array / array.sum())


def pair(left: list[int], right: list[int]) -> tuple[Array, Array]:
    size = min(len(left), len(right))
    return shares(left[:size]), shares(right[:size])


def test_psi_of_a_worked_example() -> None:
    # Three bands of a score card, 20/50/30 % at development and 30/45/25 % now, by hand:
    # .1 ln 1.5 + (-.05) ln .9 + (-.05) ln (.25/.3)
    expected = 0.1 * np.log(1.5) - 0.05 * np.log(0.9) - 0.05 * np.log(0.25 / 0.3)
    assert psi(np.array([0.2, 0.5, 0.3]), np.array([0.3, 0.45, 0.25])) == pytest.approx(expected)
    assert expected == pytest.approx(0.0549, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(counts, counts)
def test_psi_is_both_relative_entropies(left: list[int], right: list[int]) -> None:
    p, q = pair(left, right)
    assert psi(p, q) == pytest.approx(special.rel_entr(p, q).sum() + special.rel_entr(q, p).sum(), abs=1e-12)
    assert psi(p, q) == pytest.approx(psi(q, p))
    assert psi(p, p) == 0


def test_psi_at_empty_cells() -> None:
    assert psi(np.array([0.5, 0.5, 0.0]), np.array([0.4, 0.6, 0.0])) == pytest.approx(0.1 * np.log(1.5), abs=0.03)
    assert np.isinf(psi(np.array([1.0, 0.0]), np.array([0.5, 0.5])))


@settings(max_examples=40, deadline=None)
@given(counts, counts)
def test_jensen_shannon_is_scipys(left: list[int], right: list[int]) -> None:
    p, q = pair(left, right)
    # Both take the root of a difference of nearly equal numbers where p and q are close.
    assert jensen_shannon(p, q) == pytest.approx(scipy_distance.jensenshannon(p, q, base=2), abs=2e-7)
    assert 0 <= jensen_shannon(p, q) <= 1


def test_jensen_shannon_of_disjoint_shares_is_one() -> None:
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(counts, counts)
def test_hellinger_and_total_variation_are_scipys(left: list[int], right: list[int]) -> None:
    p, q = pair(left, right)
    assert hellinger(p, q) == pytest.approx(scipy_distance.euclidean(np.sqrt(p), np.sqrt(q)) / np.sqrt(2), abs=1e-12)
    assert total_variation(p, q) == pytest.approx(scipy_distance.cityblock(p, q) / 2, abs=1e-12)
    # The two bound each other: H² ≤ TV ≤ H·√2.
    assert hellinger(p, q) ** 2 <= total_variation(p, q) + 1e-12
    assert total_variation(p, q) <= hellinger(p, q) * np.sqrt(2) + 1e-12


def test_disjoint_shares_have_the_largest_distance() -> None:
    for measure in (hellinger, total_variation):
        assert measure(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(counts, counts)
def test_ks_is_scipys_when_each_value_has_a_cell(left: list[int], right: list[int]) -> None:
    size = min(len(left), len(right))
    values = np.arange(size)
    exact = stats.ks_2samp(np.repeat(values, left[:size]), np.repeat(values, right[:size]), method="asymp").statistic
    assert ks(shares(left[:size]), shares(right[:size])) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(("shift", "tolerance"), [(0.0, 0.1), (0.1, 0.1), (1.0, 0.05), (5.0, 0.3)])
def test_binned_wasserstein_and_ks_approach_the_exact_ones(shift: float, tolerance: float) -> None:
    generator = np.random.default_rng(3)
    reference, live = generator.normal(size=20_000), generator.normal(shift, 1.3, size=20_000)
    frame = pl.DataFrame({"x": reference})
    bins, _ = choose_bins(frame, ["x"], bins=100)
    before, now = sketch_frame(frame, bins)["x"], sketch_frame(pl.DataFrame({"x": live}), bins)["x"]
    exact = stats.wasserstein_distance(reference, live) / reference.std()
    assert distance_between("wasserstein", before, now) == pytest.approx(exact, rel=tolerance)
    exact = stats.ks_2samp(reference, live).statistic
    assert exact - 0.02 <= distance_between("ks", before, now) <= exact + 1e-3


@settings(max_examples=40, deadline=None)
@given(counts, counts, st.lists(st.floats(0.1, 10), min_size=12, max_size=12))
def test_wasserstein_is_the_area_between_piecewise_linear_functions(
    left: list[int], right: list[int], widths: list[float]
) -> None:
    p, q = pair(left, right)
    borders = np.concatenate([[0.0], np.cumsum(widths[: len(p)])])
    fine = np.linspace(borders[0], borders[-1], 20_001)
    gap = np.abs(
        np.interp(fine, borders, np.concatenate([[0.0], np.cumsum(p)]))
        - np.interp(fine, borders, np.concatenate([[0.0], np.cumsum(q)]))
    )
    assert wasserstein(p, q, borders) == pytest.approx(np.trapezoid(gap, fine), rel=1e-3, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(counts, counts)
def test_chi_square_is_scipys(left: list[int], right: list[int]) -> None:
    size = min(len(left), len(right))
    a, b = np.asarray(left[:size], dtype=np.float64), np.asarray(right[:size], dtype=np.float64)
    expected = stats.chi2_contingency(np.stack([a, b]), correction=False)
    statistic, p_value = chi_square_test(a, b)
    assert statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-9)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


def test_chi_square_ignores_cells_that_are_empty_on_both_sides() -> None:
    with_empty = chi_square_test(np.array([5.0, 0.0, 7.0]), np.array([9.0, 0.0, 3.0]))
    assert with_empty == chi_square_test(np.array([5.0, 7.0]), np.array([9.0, 3.0]))
    assert chi_square_test(np.array([5.0, 0.0]), np.array([9.0, 0.0])) == (0.0, 1.0)


@pytest.mark.parametrize("name", DISTANCES)
def test_many_windows_at_once_equal_one_at_a_time(name: str) -> None:
    bins = NumericBins((0.0, 1.0, 2.0, 3.0))
    reference = Sketch(bins, (5, 0, 30, 40, 25, 0))
    windows = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 9, 9, 9, 0], [0, 0, 30, 40, 25, 0]], dtype=np.float64)
    measure = distance_function(name, reference, reference)  # type: ignore[arg-type]
    together = measure(windows)
    assert together.shape == (3,)
    assert together == pytest.approx([float(measure(window)) for window in windows])
    assert np.isfinite(together).all()
    assert measure(windows.reshape(3, 1, 6)).shape == (3, 1)


def test_smoothing_keeps_the_distance_of_a_small_window_small() -> None:
    reference = np.array([0.0, 10_000.0, 10_000.0, 3.0])
    p = smoothed_shares(reference)
    assert p.sum() == pytest.approx(1)
    live = live_shares(np.array([0.0, 25.0, 25.0, 0.0]), p)
    assert live.sum() == pytest.approx(1)
    assert psi(p, live) < 0.002


def test_sketches_that_cannot_be_compared_are_errors() -> None:
    one, other = CategoryBins(("a", "b")), CategoryBins(("a", "c"))
    with pytest.raises(UsageError, match="same cells"):
        distance_between("psi", Sketch(one, (0, 1, 1, 0)), Sketch(other, (0, 1, 1, 0)))
    with pytest.raises(UsageError, match="needs ordered values"):
        distance_between("ks", Sketch(one, (0, 1, 1, 0)), Sketch(one, (0, 1, 1, 0)))
    with pytest.raises(UsageError, match="no distance 'hamming'"):
        distance_between("hamming", Sketch(one, (0, 1, 1, 0)), Sketch(one, (0, 1, 1, 0)))  # type: ignore[arg-type]
    with pytest.raises(EmptySampleError, match="window has no rows"):
        distance_between("psi", Sketch(one, (0, 1, 1, 0)), Sketch(one, (0, 0, 0, 0)))
    with pytest.raises(EmptySampleError, match="reference has no rows"):
        distance_between("psi", Sketch(one, (0, 0, 0, 0)), Sketch(one, (0, 1, 1, 0)))
    with pytest.raises(EmptySampleError, match="both sides"):
        chi_square_test(np.zeros(3), np.ones(3))
