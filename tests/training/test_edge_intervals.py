"""Intervals at the edges: nearly perfect models, few rows of a class, small rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import chi2, norm, t

from everloop.training.bootstrap_levels import normal_quantile, student_quantile
from everloop.training.intervals import delong, interval
from everloop.training.probability_calibration import calibration_interval, calibration_slope
from everloop.training.rate_intervals import newcombe, poisson_bound


def test_a_perfect_area_on_36_rows_is_not_certain():
    y = (np.arange(36) < 18) * 1.0
    found = delong(y, y + np.linspace(0, 0.1, 36))
    assert (found.value, found.high) == (1.0, 1.0)
    # The exact bound of 18 successes in 18 trials.
    assert found.low == pytest.approx(0.025 ** (1 / 18))


@pytest.mark.parametrize("area", [0.8, 0.95, 0.99])
def test_an_area_near_one_has_an_interval_inside_the_unit_interval(area):
    rng = np.random.default_rng(1)
    y = (np.arange(200) < 100) * 1.0
    found = delong(y, y * norm.ppf(area) * 2**0.5 + rng.normal(size=200))
    assert 0 < found.low < found.value < found.high < 1
    assert found.value - found.low > found.high - found.value


@pytest.mark.parametrize("degrees", [5, 10, 35, 1000])
def test_students_quantile_is_that_of_scipy(degrees):
    assert student_quantile(0.95, degrees) == pytest.approx(t.ppf(0.975, degrees), abs=0.005)
    assert normal_quantile(0.95) == pytest.approx(norm.ppf(0.975))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_modified_end_is_a_quantile_of_chi_square(count):
    # Brown, Cai and DasGupta: half the 5 % quantile of chi-square with 2x degrees of freedom.
    assert poisson_bound(count, 1000, 0.95) == pytest.approx(chi2.ppf(0.05, 2 * count) / 2 / 1000)
    assert poisson_bound(4, 1000, 0.95) == 1.0


def test_newcombes_published_example():
    # Newcombe 1998, table II, (a): 56/70 and 48/80, method 10.
    low, high = newcombe(56, 70, 48, 80)
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_interval_of_a_rate_contains_it(hits, rows):
    hits = min(hits, rows)
    y = np.ones(rows)
    scores = (np.arange(rows) < hits) * 1.0
    found = interval(y, scores, "accuracy")
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low


def test_the_slope_of_calibrated_probabilities_is_one():
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.02, 0.98, 20_000)
    y = (rng.uniform(size=20_000) < chances) * 1.0
    slope, intercept = calibration_slope(y, chances)
    assert slope.low < 1 < slope.high
    assert intercept.low < 0 < intercept.high
    found = calibration_interval(y, chances)
    assert found.low == 0
    assert found.high < 0.02


def test_separated_classes_have_no_slope():
    slope, intercept = calibration_slope([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert np.isnan([slope.value, slope.low, intercept.value]).all()


@pytest.mark.slow
def test_intervals_of_areas_cover_the_population():
    apart, hits = norm.ppf(0.95) * 2**0.5, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        y = (np.arange(100) < 10) * 1.0
        found = delong(y, y * apart + rng.normal(size=100))
        hits += found.low <= 0.95 <= found.high
    assert hits / 400 >= 0.92
